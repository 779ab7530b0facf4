"""The part of `analyze` that measures by losses: components of W₀ by texts and tasks, and adapters on others' tasks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from lit_spectral.adapters import named_changes
from lit_spectral.adapters.linear import weight_matrix
from lit_spectral.analysis.fisher import Overlap, bases_of, diagonal_fisher, overlaps
from lit_spectral.analysis.interventions import Intervention, draw, intervene
from lit_spectral.analysis.measuring import Analysis, place_of
from lit_spectral.analysis.readings import Reading, RunReading, TextReading, checkpoint_of, config_of
from lit_spectral.bars import track
from lit_spectral.checkpoint import load_given
from lit_spectral.errors import InputError, check_at_least
from lit_spectral.retention.command import named_corpora
from lit_spectral.spectra.cache import SVDCache
from lit_spectral.updates import sources
from lit_spectral.updates.delta import Delta

__all__ = ["ByLoss", "add_flags", "by_loss", "check_flags", "check_groups"]

# What stands for an adapter where there is none.
NONE = "none: the backbone"


@dataclass
class ByLoss:
    """What was measured by losses, each empty where it wasn't asked for.

    Args:
        transfer: all that a task's validation logged, by adapter and task, the backbone first.
        metrics: of each task, the one that is shown.
        overlaps: of tasks' Fisher information.
        interventions: by text or task.
        noise: ε of interventions.
    """

    transfer: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    overlaps: list[Overlap] = field(default_factory=list)
    interventions: dict[str, list[Intervention]] = field(default_factory=dict)
    noise: float = 0.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """`--tasks`, `--fisher`, `--interventions` and `--noise`."""
    about = "folders of runs (config.yaml, checkpoints/last.ckpt): each adapter's ΔW on their validation data, under "
    about += "their heads"
    parser.add_argument("--tasks", nargs="+", action="extend", default=[], metavar="NAME=RUN", help=about)
    about = "overlap of the Fisher information of each two of --corpora and --tasks over so many groups of W₀'s "
    about += "singular components"
    parser.add_argument("--fisher", type=int, metavar="GROUPS", help=about)
    about = "zero, flip and shake so many of W₀'s --top singular components, one at a time, and measure the loss on "
    about += "each of --corpora and --tasks: three passes each"
    parser.add_argument("--interventions", type=int, metavar="N", help=about)
    about = "ε, by which a component is shaken: σ becomes (1 + ε N(0, 1)) σ (%(default)s)"
    parser.add_argument("--noise", type=float, default=0.1, metavar="E", help=about)


def check_flags(given: argparse.Namespace) -> None:
    """InputError for those that can't be met."""
    check_at_least(1, fisher=given.fisher)
    check_at_least(3, interventions=given.interventions)
    check_at_least(0, noise=given.noise)
    names = [*named_corpora(given.corpora), *_tasks(given)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"analyze: a text and a task are both named {twice}; give another name, NAME=…")
    if given.fisher and len(names) < 2:
        raise InputError(
            f"analyze: --fisher compares two tasks, and {len(names) or 'none'} is given; give two of --corpora, --tasks"
        )
    if given.interventions and not names:
        raise InputError("analyze: --interventions measures a loss; give --corpora or --tasks too, or leave it out")


def check_groups(given: argparse.Namespace, analysis: Analysis) -> None:
    """InputError for more groups of components than a W₀ of a layer has components."""
    for path, weight in analysis.weights.items():
        if given.fisher and given.fisher > len(weight.sigma) and place_of(path).layer is not None:
            has = f"{path} has {len(weight.sigma)} singular components"
            raise InputError(f"analyze: --fisher: {has}, and {given.fisher} groups are asked for; give fewer")


def by_loss(given: argparse.Namespace, labels: Mapping[str, str], device: torch.device) -> ByLoss:
    """What flags ask for.

    Args:
        given: the flags.
        labels: from what each source is called to it.
        device: where to measure.

    Raises:
        InputError: a run or text that can't be measured; runs that have no map in common.
    """
    found = ByLoss(noise=given.noise)
    limit = given.limit or None
    runs = {name: RunReading(name, folder, given.backbone, device, limit) for name, folder in _tasks(given).items()}
    if runs:
        updates = {label: sources.read(source, given.backbone) for label, source in labels.items()}
        found.metrics = {name: run.metric for name, run in runs.items()}
        first = next(iter(updates.values())).changes
        found.transfer = _transfer(runs, {NONE: {}} | {label: each.changes for label, each in updates.items()})
        for run in runs.values():
            run.put(first)  # whose maps are looked at below
    if not (given.fisher or given.interventions):
        return found
    readings: list[Reading] = [*runs.values()]
    if given.corpora:
        task = load_given(given.sources[0], given.backbone).to(device)
        for name, text in named_corpora(given.corpora).items():
            readings.append(TextReading(name, text, task, limit, given.max_length))
    if given.fisher:
        found.overlaps = _overlaps(readings, given.fisher)
    if given.interventions:
        found.interventions = {reading.name: _interventions(reading, given) for reading in readings}
    return found


def _tasks(given: argparse.Namespace) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given.tasks:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise InputError(f"analyze: --tasks: {text!r} lacks a name or a folder; give NAME=RUN")
        if name in found:
            raise InputError(f"analyze: --tasks: {name} is given twice; give it once")
        found[name] = Path(folder)
        for file in (config_of(found[name]), checkpoint_of(found[name])):
            if not file.is_file():
                what = f"analyze: --tasks {name}: there is no {file}"
                raise InputError(f"{what}; give the folder of a run, which has config.yaml and checkpoints/last.ckpt")
    return found


def _transfer(
    runs: Mapping[str, RunReading], changes: Mapping[str, Mapping[str, Delta]]
) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {label: {} for label in changes}
    pairs = [(label, name) for name in runs for label in changes]
    for label, name in track(pairs, "adapters on tasks"):
        runs[name].put(changes[label])
        found[label][name] = runs[name].validated()
    return found


def _maps(reading: Reading) -> dict[str, nn.Module]:
    """Those of the layers that the adapter changes."""
    changed = named_changes(reading.task.model)
    return {path: each.base_layer for path, each in changed.items() if place_of(path).layer is not None}


def _overlaps(readings: list[Reading], groups: int) -> list[Overlap]:
    every = [_maps(reading) for reading in readings]
    shared = {path: module for path, module in every[0].items() if all(path in maps for maps in every)}
    if not shared:
        names = ", ".join(reading.name for reading in readings)
        raise InputError(f"analyze: --fisher: {names} have no changed map of a layer in common; give runs of one kind")
    bases = bases_of(shared)
    return list(overlaps({reading.name: diagonal_fisher(reading, bases) for reading in readings}, groups))


def _interventions(reading: Reading, given: argparse.Namespace) -> list[Intervention]:
    weights = {path: weight_matrix(module).cpu() for path, module in _maps(reading).items()}
    triplets = SVDCache().singular_triplets(weights, "top", given.top)
    components = draw(triplets, given.interventions, given.seed)
    return intervene(reading, components, triplets, given.noise, given.batch_size, given.seed)
