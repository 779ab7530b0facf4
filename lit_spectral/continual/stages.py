"""Stages: a config each, of one task on one backbone, and the ways from one stage's adapter to the next one's."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from lit_spectral.bars import track
from lit_spectral.comparison.fitting import read_flags, task_metric
from lit_spectral.comparison.variants import Variant
from lit_spectral.errors import InputError, nearest
from lit_spectral.methods.base import LowRankMethod, Method, Site
from lit_spectral.methods.spectra import Matrices, Spectra
from lit_spectral.paths import config_file
from lit_spectral.reading import Reading
from lit_spectral.spectra.input_directions import Fed
from lit_spectral.updates.of_model import delta_of

__all__ = ["BEFORE", "HOW", "JOINT", "Stage", "named_stages", "read_stages", "split_how", "way"]

# From how a sequence is trained to the settings of the method that name the previous stage's checkpoint.
HOW = {"chain": ["start_from"], "stack": ["on_top_of"], "after": ["on_top_of", "after"]}
# What isn't a stage.
BEFORE, JOINT = "before", "joint"
# Features of the map that a method is tried on.
SIZE = 256


class Stage(NamedTuple):
    """A stage that has been read: its name, its file, the file's digest, its metric, and what its settings made."""

    name: str
    config: str
    digest: str
    metric: str
    higher_is_better: bool
    cli: Any

    @property
    def own_head(self) -> bool:
        """Whether the task has a head that is trained, so that each stage has its own."""
        return bool(self.cli.model.trains_head)


def named_stages(given: Sequence[str]) -> dict[str, str]:
    """From a name to a config, out of `NAME=CONFIG`; InputError for two of one name, one stage alone, or no name."""
    found: dict[str, str] = {}
    for text in given:
        name, named, config = text.partition("=")
        if not named:
            name, config = Path(text).stem, text
        if not re.fullmatch(r"[\w+.-]+", name) or not config or name in {BEFORE, JOINT}:
            raise InputError(f"continual: --stages: {text!r} is no stage; give NAME=CONFIG, NAME not before nor joint")
        if name in found:
            raise InputError(f"continual: --stages has two of the name {name}; give each its own, NAME={config}")
        found[name] = config
    if len(found) < 2:
        raise InputError("continual: --stages has one stage alone, after which nothing can be forgotten; give two")
    return found


def split_how(
    pairs: Sequence[tuple[str, str]], names: Sequence[str], default: str
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Flags for `fit`, and how each of `--methods` is trained: as its flag `NAME.how` says, or by default.

    Raises:
        InputError: a way that there isn't, one for a method that isn't compared, or a flag that is the way's to give.
    """
    arms = [name.rpartition("=")[0] or name for name in names]
    how, rest = dict.fromkeys(arms, default), []
    for flag, value in pairs:
        head, _, setting = flag.rpartition(".")
        if setting == "how":
            if head not in arms:
                raise InputError(f"continual: --{flag}: --methods has no {head}{nearest(head, arms)}")
            how[head] = value
        elif setting in {"start_from", "on_top_of", "after"}:
            raise InputError(f"continual: --{flag} is not for the runs; give --how, or NAME.how for one of --methods")
        else:
            rest.append((flag, value))
    for value in how.values():
        if value not in HOW:
            raise InputError(f"continual: --how: there is no {value}{nearest(value, HOW)}")
    return rest, how


def way(how: str, previous: Path | None) -> list[str]:
    """Flags of `fit` that lead from the previous stage's checkpoint to the next one's; none for the first stage."""
    return [] if previous is None else [f"--model.method.{setting}={previous}" for setting in HOW[how]]


def read_stages(
    configs: dict[str, str], compared: Sequence[Variant], how: dict[str, str], given: argparse.Namespace
) -> list[Stage]:
    """Have every stage read under every variant's flags, before anything runs.

    Args:
        configs: as `named_stages` gives them, and a last one of the name `joint` if there is one.
        compared: the variants.
        how: each arm's way.
        given: the verb's flags.

    Raises:
        InputError: a config that can't be read; stages of different backbones, tasks or directions of their metrics;
            a method that can't be trained in its way.
    """
    stages = []
    pairs = [(name, variant) for name in configs for variant in compared]
    for name, variant in track(pairs, description="reading the stages"):
        config = configs[name]
        digest = hashlib.sha256(config_file(config).read_bytes()).hexdigest()
        cli = read_flags([config], variant.flags())
        if variant == compared[0]:
            stages.append(Stage(name, config, digest, *task_metric(cli, given.metric), cli))
            _check_alike(stages[0], stages[-1])
        if name == stages[0].name:
            _check_way(cli.model, how[variant.arm], variant)
    return stages


def _check_alike(first: Stage, other: Stage) -> None:
    for what, remedy in (("task", "--model"), ("backbone", "--model.backbone")):
        ours, theirs = (_of(what, stage.cli.model) for stage in (first, other))
        if ours != theirs:
            raise InputError(
                f"continual: {first.name} and {other.name} have different {what}s, {ours} and {theirs}; adapters go "
                f"from stage to stage of one alone: give configs of one {remedy}"
            )
    if first.higher_is_better != other.higher_is_better:
        raise InputError(
            f"continual: more of {first.name}'s {first.metric} is better and less of {other.name}'s {other.metric}, or "
            "the other way round, and their mean says nothing; give --metric, one for all"
        )
    if other.cli.trainer.checkpoint_callback is None:
        raise InputError(f"continual: {other.config} keeps no checkpoint, from which the next stage would go on")
    if other.name == JOINT and other.own_head:
        raise InputError(
            f"continual: --joint: {type(other.cli.model).__name__} has a head for each stage, and one for all of them "
            "fits none; leave it out"
        )


def _of(what: str, task: Any) -> str:
    return str(task.backbone) if what == "backbone" else type(task).__name__


def _check_way(task: Any, how: str, variant: Variant) -> None:
    """InputError, in one line, for a method that can't be trained in this way, as far as that can be told by now."""
    method, told = task.method, f"continual: {variant.name} by {how}"
    remedy = f"give --{variant.arm}.how stack, or another method"
    if how != "chain" and task.loading.quantization:
        raise InputError(f"{told}: a quantised backbone can't hold earlier adapters in its weights; give --how chain")
    if how == "after" and not isinstance(method, LowRankMethod):
        raise InputError(f"{told}: {type(method).__name__}'s ΔW is no product of thin factors; {remedy}")
    try:
        if how == "chain":
            replace(method, start_from="earlier")
        if how != "stack":
            _try(method, how)
    except ValueError as error:
        raise InputError(f"{told}: {error}; or {remedy}") from None


def _try(method: Method, how: str) -> None:
    """Have a method's adapter on a small random map do what it will be asked to; ValueError where it can't."""
    if getattr(type(method).build, "__isabstractmethod__", False):  # it adapts no map by itself
        return
    with isolate_rng(), torch.no_grad():
        layer = nn.Linear(SIZE, SIZE)
        site = Site("", layer, layer, Spectra(Matrices({"": layer}), lambda: Fed(layer, {})), Reading(nn.Module()))
        try:
            method.check(site)
            adapter: Any = method.build(site)
        except ValueError:  # it may be that this map alone is too small, or lies nowhere
            return
        if how == "chain":
            adapter.start_at(delta_of(adapter))
        else:
            adapter.avoid(*torch.linalg.qr(torch.randn(2, SIZE, 1)).Q)
