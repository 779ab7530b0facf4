"""The adapters that finished comparisons have left: of which task, method and seed, and by what they are judged."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_spectral.backbone_digest import same_backbone
from lit_spectral.checkpoint_file import read, saved_by_task
from lit_spectral.comparison.results import more_is_better
from lit_spectral.comparison.variants import folder_of
from lit_spectral.errors import InputError, nearest

__all__ = [
    "Adapter",
    "Chosen",
    "Metric",
    "check_backbones",
    "choose",
    "finished",
    "metric_of",
    "named",
    "named_folders",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapter:
    """What one run of a comparison has trained.

    Args:
        task: what the study calls the comparison.
        method: what the comparison calls the method with its settings.
        seed: of the run.
        folder: of the run.
        logged: names of what its last validation logged.
    """

    task: str
    method: str
    seed: int
    folder: Path
    logged: frozenset[str]

    @property
    def checkpoint(self) -> Path:
        """Of the end of training, as the comparison's figures are."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def config(self) -> Path:
        """By which it was trained, and is measured."""
        return self.folder / "config.yaml"

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.task}: {self.method}, seed {self.seed}"

    @cached_property
    def digest(self) -> str:
        """Of the checkpoint's bytes: another one has another."""
        with open(self.checkpoint, "rb") as file:
            digest = hashlib.blake2b(digest_size=8)
            while part := file.read(2**20):
                digest.update(part)
        return digest.hexdigest()


class Metric(NamedTuple):
    """A task's own, as it is logged."""

    name: str
    higher_is_better: bool


class Chosen(NamedTuple):
    """What all tasks have: methods, of each task its seeds, and every adapter by task, method and seed."""

    methods: list[str]
    seeds: Mapping[str, list[int]]
    adapters: Mapping[tuple[str, str, int], Adapter]


def finished(task: str, folder: Path) -> list[Adapter]:
    """The adapters that a comparison's table is of, in its order.

    Args:
        task: what to call it.
        folder: that `lit-spectral compare` has written.

    Raises:
        InputError: no table there, or none of its runs has left its checkpoint.
    """
    table = folder / "runs.csv"
    if not table.is_file():
        raise InputError(f"merge-study: {task}: {folder} has no finished run; give the folder of a finished compare")
    try:
        with open(table, encoding="utf-8", newline="") as file:
            rows = [(row["method"], int(row["seed"]), row) for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"merge-study: {table} is no table of runs; run the same compare again") from None
    adapters = []
    for method, seed, row in rows:
        logged = frozenset(
            name.removeprefix("metrics/") for name in row if name.startswith("metrics/val") and row[name]
        )
        adapter = Adapter(task, method, seed, folder / folder_of(method) / f"seed_{seed}", logged)
        if adapter.checkpoint.is_file() and adapter.config.is_file():
            adapters.append(adapter)
        else:
            log.warning("merge-study: %s is left out: %s lacks its checkpoint or config", adapter.name, adapter.folder)
    if not adapters:
        raise InputError(f"merge-study: {task}: no run in {folder} has left a checkpoint; run the same compare again")
    return adapters


def choose(found: Mapping[str, Sequence[Adapter]], asked: Sequence[str] = ()) -> Chosen:
    """What can be compared by the same merges: methods that every task has, and seeds that all of these have.

    Args:
        found: adapters by task.
        asked: methods, the first of which the others are compared with; none for all, in the first task's order.

    Raises:
        InputError: one task only, a method that a task lacks, nothing that all have.
    """
    if len(found) < 2:
        raise InputError(f"merge-study: {len(found)} task is given, and a merge is of two at least; give NAME=FOLDER …")
    by_task = {task: {(a.method, a.seed): a for a in adapters} for task, adapters in found.items()}
    known = {task: list(dict.fromkeys(method for method, _ in runs)) for task, runs in by_task.items()}
    for task, theirs in known.items():
        for method in asked:
            if method not in theirs:
                raise InputError(f"merge-study: {task} has no finished run of {method}{nearest(method, theirs)}")
    every = dict.fromkeys(method for theirs in known.values() for method in theirs)
    methods = list(asked) or [method for method in every if all(method in theirs for theirs in known.values())]
    if not methods:
        raise InputError("merge-study: no method has finished runs in every task; give comparisons of the same methods")
    if not asked and (lacking := [method for method in every if method not in methods]):
        log.warning("merge-study: left out, since not every task has finished runs: %s", ", ".join(lacking))
    seeds = {task: _common(task, runs, methods) for task, runs in by_task.items()}
    adapters = {(task, m, s): by_task[task][m, s] for task in found for m in methods for s in seeds[task]}
    return Chosen(methods, seeds, adapters)


def _common(task: str, runs: Collection[tuple[str, int]], methods: Sequence[str]) -> list[int]:
    """The seeds of which every method has a run."""
    seeds = sorted({seed for method, seed in runs if method in methods})
    whole = [seed for seed in seeds if all((method, seed) in runs for method in methods)]
    if not whole:
        raise InputError(
            f"merge-study: {task}: no seed has finished runs of {', '.join(methods)}; finish them, or give --methods"
        )
    if lacking := sorted({*seeds} - {*whole}):
        told = ", ".join(map(str, lacking))
        log.warning("merge-study: %s: left out, since not every method has finished: seeds %s", task, told)
    return whole


def check_backbones(adapters: Iterable[Adapter]) -> None:
    """InputError for two adapters of one kind of task whose backbones differ.

    Of different kinds a digest can't tell: some leave a part of the backbone out, as a pooler. `Bench` looks at these.
    """
    known: dict[str, tuple[Adapter, str]] = {}
    for adapter in adapters:
        saved = saved_by_task(read(adapter.checkpoint, summary=True))
        first, digest = known.setdefault(saved["task"], (adapter, saved["backbone_digest"]))
        if not same_backbone(digest, saved["backbone_digest"]):
            raise InputError(
                f"merge-study: {first.name} and {adapter.name} are adapters of different backbones; give comparisons "
                "of one"
            )


def named_folders(verb: str, given: Sequence[str]) -> dict[str, Path]:
    """From a name to a folder, out of `NAME=FOLDER`; InputError as `named`."""
    return {name: Path(place) for name, place in named(verb, given, "NAME=FOLDER").items()}


def named(verb: str, given: Sequence[str], form: str) -> dict[str, str]:
    """From a name to what is given for it; InputError for what isn't of the form, or a name that is there twice."""
    found: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name or not value or "/" in name:
            raise InputError(f"{verb}: {text!r} is no {form}; give one")
        if name in found:
            raise InputError(f"{verb}: {name} is given twice; give it once")
        found[name] = value
    return found


def metric_of(adapters: Sequence[Adapter], asked: str | None = None) -> Metric:
    """By what a task is judged: what is asked for, or what its comparison went by; else the validation loss.

    Args:
        adapters: of one task.
        asked: a name, as it is logged.

    Raises:
        InputError: one of the runs didn't log it.
    """
    callbacks = _callbacks(adapters[0].config)
    watched = [(str(given["monitor"]), given.get("mode")) for given in callbacks if given.get("monitor")]
    # RunRecord, which `compare` adds, comes last.
    name = asked or (watched[-1][0] if watched else "val/loss")
    modes = [mode for monitor, mode in watched if monitor == name and mode]
    for adapter in adapters:
        if name not in adapter.logged:
            there = ", ".join(sorted(adapter.logged))
            remedy = f"give --metric {adapter.task}=NAME, of {there}" if there else "have it validate, and run it again"
            raise InputError(f"merge-study: {adapter.name} logged no {name}; {remedy}")
    return Metric(name, more_is_better(name, modes))


def _callbacks(config: Path) -> list[dict[str, Any]]:
    """Settings of a run's callbacks."""
    try:
        given = yaml.safe_load(config.read_text(encoding="utf-8"))["trainer"]["callbacks"] or []
        return [each.get("init_args") or {} for each in ([given] if isinstance(given, dict) else given)]
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"merge-study: {config} is no config of a run; run the same compare again") from None
