"""Several updates of one backbone made one, by a rule of `merge_rules.RULES`, a weight at a time."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_spectral.bars import Progress
from lit_spectral.errors import InputError, check_at_least, check_at_most, check_positive, nearest
from lit_spectral.updates.delta import Delta
from lit_spectral.updates.merge_rules import RULES, Changes
from lit_spectral.updates.update import Update, check_same_backbone, sources_within

__all__ = ["Merged", "checked", "merge"]

log = logging.getLogger(__name__)


class Merged(NamedTuple):
    """One update, and by path ‖what a rank or energy cut off‖_F over ‖ΔW‖_F, where one was asked for."""

    update: Update
    errors: Mapping[str, float]


def merge(
    updates: Mapping[str, Update],
    rule: str = "add",
    weights: Sequence[float] | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    heads_of: str | None = None,
    base: Mapping[str, Tensor] | None = None,
    **settings: float,
) -> Merged:
    """One update of several, by source, of one backbone; one without a path has ΔW = 0 there.

    Tensors that were trained whole aren't added, since what they were before is not known: heads
    are one update's, anything else must be one's alone or the same in all.

    Args:
        updates: by source: a file, a folder, or any name.
        rule: a key of `RULES`.
        weights: a real number for each update, in their order; all 1 unless given. One of weight 0 changes nothing.
        rank: of every change at most; by `Delta.truncated`.
        energy: share of each change's Σσ² to keep, in (0, 1].
        heads_of: the source whose heads are kept; the first that has heads unless given.
        base: W₀ (out, in) by path; only changes that multiply W₀ (HiRA) need it, unless they are added.
        settings: of the rule, those that `RULES` lists.

    Raises:
        InputError: settings that the rule doesn't take or that are out of range, updates of different backbones, norms,
            biases or embeddings that differ, weights of the backbone that are needed and not given.
    """
    given = checked(updates, rule, weights, settings, heads_of, rank, energy)
    check_same_backbone(updates)
    for (one, first), (other, second) in itertools.combinations(updates.items(), 2):
        if sources_within(one, first.origin) & sources_within(other, second.origin):
            log.warning(
                "what is in %s is in %s too, and counts twice; give one, or weights that take it out", one, other
            )
    heads_of, whole = _whole(updates, heads_of)
    chosen: dict[str, Any] = {**RULES[rule].settings, **settings}
    options = chosen | ({"rank": rank} if rule == "tsv" else {})
    weighted = [pair for pair in enumerate(zip(updates.values(), given, strict=True)) if pair[1][1]]
    paths = dict.fromkeys(path for _, (update, _) in weighted for path in update.changes)
    cut = rank is not None or energy is not None
    merged: dict[str, Delta] = {}
    errors: dict[str, float] = {}
    for path in _followed(list(paths)):
        deltas = {
            place: update.changes[path].to(torch.float32).scaled(weight)
            for place, (update, weight) in weighted
            if path in update.changes
        }
        needed = (rule != "add" or cut) and any(delta.hadamard for delta in deltas.values())
        weight = _weight(path, base) if needed else None
        if weight is not None and rule != "add":
            deltas = {k: Delta(matrix=d.dense(weight)) if d.hadamard else d for k, d in deltas.items()}
        result = RULES[rule].merge(Changes(path, deltas), **options)
        if cut:
            result, errors[path] = result.truncated(rank, energy, weight)
        merged[path] = result.to(torch.float32)
    model = updates[heads_of] if heads_of is not None else next(iter(updates.values()))
    origin = {
        **{name: model.origin[name] for name in ("architecture", "config_labels") if name in model.origin},
        "method": "merge",
        "rule": rule,
        **chosen,
        "weights": given,
        "sources": {source: dict(update.origin) for source, update in updates.items()},
        "heads_of": heads_of,
    }
    known = [(update.backbone, update.digest) for update in updates.values()]
    backbone, digest = (next((each for each in values if each), "") for values in zip(*known, strict=True))
    return Merged(Update(merged, whole, backbone, digest, origin), errors)


def checked(
    sources: Collection[str],
    rule: str,
    weights: Sequence[float] | None = None,
    settings: Mapping[str, float] | None = None,
    heads_of: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
) -> list[float]:
    """Weights, one for each source; InputError for what can't be asked for, which is known before any is read."""
    settings = settings or {}
    if not sources:
        raise InputError("merge: no update is given; give one or several")
    if rule not in RULES:
        raise InputError(f"merge: there is no rule {rule}{nearest(rule, RULES)}")
    for name in settings.keys() - RULES[rule].settings.keys():
        takers = [other for other, row in RULES.items() if name in row.settings]
        raise InputError(f"merge: {name} is not for {rule}" + (f", but for {', '.join(takers)}" if takers else ""))
    check_at_least(1, rank=rank)
    check_positive(density=settings.get("density"), energy=energy)
    check_at_most(1, density=settings.get("density"), energy=energy)
    given = [1.0] * len(sources) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(sources):
        raise InputError(f"merge: {len(given)} weights for {len(sources)} sources; give one for each, in their order")
    if not all(map(math.isfinite, given)) or not any(given):
        raise InputError("merge: weights are finite numbers, not all of them 0")
    if heads_of is not None and heads_of not in sources:
        raise InputError(f"merge: heads of {heads_of}, which is none of the sources; give one of {', '.join(sources)}")
    return given


def _whole(updates: Mapping[str, Update], heads_of: str | None) -> tuple[str | None, dict[str, Tensor]]:
    """Whose heads are kept, and the tensors that were trained whole of the merged update.

    Heads are one update's, since another's output means something else; a pooler, which is trained where a backbone's
    files lack it, belongs to its head. Anything else, such as a norm, is kept if one update has it or all that have it
    agree.
    """
    parts = _backbone_parts(updates)
    heads = {
        source: {name for name in update.whole if name.split(".")[0] not in parts or "pooler" in name.split(".")}
        for source, update in updates.items()
    }
    if heads_of is None:
        heads_of = next((source for source in updates if heads[source]), None)
    lost = [source for source, names in heads.items() if names and source != heads_of]
    if lost:
        log.warning("merge: heads are those of %s; those of %s are left out", heads_of, ", ".join(lost))
    kept: dict[str, tuple[str, Tensor]] = {}
    for source, update in updates.items():
        for name, tensor in update.whole.items():
            if name in heads[source] and source != heads_of:
                continue
            first, other = kept.setdefault(name, (source, tensor))
            if tensor.shape != other.shape or not bool((tensor == other).all()):
                raise InputError(
                    f"merge: {first} and {source} each trained {name}, which is no part of a head, and differ in it; "
                    "give adapters that left it as it was"
                )
    return heads_of, {name: tensor for name, (_, tensor) in kept.items()}


def _backbone_parts(updates: Mapping[str, Update]) -> set[str]:
    """Names of the models' outermost modules that hold layers with a number (`model`, `bert`): the rest are heads."""
    names = [name for update in updates.values() for name in update.changes]
    names = names or [name for update in updates.values() for name in update.whole]
    split = [name.split(".") for name in names]
    return {parts[0] for parts in split if any(part.isdigit() for part in parts)}


def _weight(path: str, base: Mapping[str, Tensor] | None) -> Tensor:
    if base is None or path not in base:
        raise InputError(f"merge: the change of {path} multiplies the backbone's weight; say where the backbone lies")
    return base[path]


def _followed(paths: Sequence[str]) -> Iterator[str]:
    """Paths, with a bar once they have taken two seconds."""
    progress, begun = Progress(transient=True), time.monotonic()
    task = progress.add_task("merging", total=len(paths))
    try:
        for path in paths:
            yield path
            progress.advance(task)
            if time.monotonic() - begun > 2:
                progress.start()
    finally:
        if progress.live.is_started:
            progress.stop()
