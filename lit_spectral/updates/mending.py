"""Repairs of an adapter that is trained: what constraints do while training, done afterwards, without data.

Each is a function from an update, a value and the backbone to an update, and a row in `REPAIRS`. Thin changes stay
thin. What was trained whole (heads, norms, biases) stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import yaml

from lit_spectral.errors import InputError, reason_of
from lit_spectral.methods.bounds import Bound, read_bound, resolve_bound
from lit_spectral.spectra.cache import SVDCache
from lit_spectral.spectra.input_directions import is_share
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.delta import Delta
from lit_spectral.updates.intruders import AMONG, KNOWN, without_intruders
from lit_spectral.updates.sizes import size_of
from lit_spectral.updates.update import Update

__all__ = ["REPAIRS", "Repair", "mend"]


class Repair(NamedTuple):
    """One way to mend.

    `read` makes the command line's text the value, or raises InputError; `default` is what stands for no text, where
    none may be given.
    """

    apply: Callable[[Update, Any, Backbone], Update]
    read: Callable[[str], Any]
    metavar: str
    about: str
    default: str | None = None


def mend(update: Update, name: str, value: Any, backbone: Backbone) -> Update:
    """An update after the repair of this name in `REPAIRS`, which its origin tells.

    Raises:
        InputError: the repair needs the backbone, and it can't be had or is another one's.
    """
    mended = REPAIRS[name].apply(update, value, backbone)
    done = [*update.origin.get("mended", []), f"{name} {value}"]
    return replace(mended, origin={**mended.origin, "mended": done})


def scale(update: Update, factor: float, backbone: Backbone) -> Update:
    """ΔW ← factor · ΔW: 1 as trained, 0 the backbone (rewinding)."""
    return update.scaled(factor)


def ball(update: Update, bound: Bound, backbone: Backbone) -> Update:
    """The nearest changes with ‖ΔW‖₂ ≤ bound: a number, or by each map's W₀ or inputs, as `resolve_bound`."""
    if isinstance(bound, int | float):  # for which no backbone is needed
        return update.map(lambda path, delta: delta.contracted(float(bound), backbone.behind(path, delta)))
    spectra = backbone.spectra(update.changes)

    def contracted(path: str, delta: Delta) -> Delta:
        with _told("ball", path):
            radius = resolve_bound(bound, spectra, path)
        return delta.contracted(radius, backbone.behind(path, delta))

    return update.map(contracted)


def frobenius(update: Update, bound: float, backbone: Backbone) -> Update:
    """The nearest changes with ‖ΔW‖_F ≤ bound, which are multiples of ΔW (FCLoRA App. I's constraint)."""

    def shrunk(path: str, delta: Delta) -> Delta:
        size = size_of(delta.singular_values(backbone.behind(path, delta))).frobenius
        return delta.scaled(bound / size) if size > bound else delta

    return update.map(shrunk)


def clip(update: Update, factor: float, backbone: Backbone) -> Update:
    """Singular values of each ΔW above factor · their median become that; factor ≥ 1.

    The median is of those that aren't 0 but for rounding, of an even number the lower of the two in the middle: it
    stays what it is, so that clipping twice is clipping once.
    """

    def clipped(path: str, delta: Delta) -> Delta:
        weight = backbone.behind(path, delta)
        sigma = delta.singular_values(weight)
        return delta.contracted(factor * float(sigma[: max(1, size_of(sigma).rank)].median()), weight)

    return update.map(clipped)


def principal_rank(update: Update, count: int, backbone: Backbone) -> Update:
    """ΔW ← (1 − U Uᵀ) ΔW (1 − V Vᵀ), U and V the `count` leading singular vectors of W₀."""
    top = SVDCache().singular_triplets(backbone.of(update.changes), "top", count)
    return update.map(lambda path, delta: delta.outside(top[path].u, top[path].v, backbone.behind(path, delta)))


def input_rank(update: Update, count: float, backbone: Backbone) -> Update:
    """ΔW ← ΔW (1 − V Vᵀ), V the leading directions of what the map is fed: how many, or of which share."""
    for path, delta in update.changes.items():
        if count > delta.shape[1]:
            raise InputError(f"input_rank: {path} has {delta.shape[1]} inputs; give less than {count}")
    spectra = backbone.spectra(update.changes)

    def deafened(path: str, delta: Delta) -> Delta:
        with _told("input_rank", path):
            fed = spectra.input_directions(path, count)
        return delta.outside(None, fed, backbone.behind(path, delta))

    return update.map(deafened)


def intruders(update: Update, threshold: float, backbone: Backbone) -> Update:
    """Each ΔW without what it adds along intruder dimensions, as `without_intruders`."""
    weights = backbone.of(update.changes)
    known = min([KNOWN, *(min(delta.shape) for delta in update.changes.values())])
    top = SVDCache().singular_triplets(weights, "top", known)
    return update.map(lambda path, delta: without_intruders(delta, weights[path], top[path].u, threshold))


def rank(update: Update, most: int, backbone: Backbone) -> Update:
    """The nearest changes of this rank."""
    return update.map(lambda path, delta: delta.truncated(most, None, backbone.behind(path, delta)).delta)


def energy(update: Update, share: float, backbone: Backbone) -> Update:
    """The nearest changes of the smallest ranks that keep a share of each Σσ²."""
    return update.map(lambda path, delta: delta.truncated(None, share, backbone.behind(path, delta)).delta)


@contextmanager
def _told(repair: str, path: str) -> Iterator[None]:
    """Within it, what is wrong with a map is said by the repair's name and the map's path."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{repair}: {path}: {error}") from None


def _number(
    name: str, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> Callable[[str], float]:
    """A reader of finite numbers of a range."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most and value > above):
            low = f" at least {least:g}" * math.isfinite(least) + f" above {above:g}" * math.isfinite(above)
            raise InputError(f"{name} is a number{low}{f' and at most {most:g}' * math.isfinite(most)}, not {text}")
        return value

    return read


def _count(name: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) < 2**31:
            raise InputError(f"{name} is a whole number, at least 1, not {text}")
        return int(text)

    return read


def _directions(text: str) -> float:
    """A whole number of directions, or the share of energy that they hold."""
    try:
        count = int(text) if text.isdecimal() else float(text)
        is_share(count)
    except ValueError as error:
        said = error if isinstance(error, InputError) else f"input_rank is a number, not {text}"
        raise InputError(str(said)) from None
    if count == 0:
        raise InputError("input_rank is at least 1, or a share of energy, above 0 and below 1, not 0")
    return count


def _bound(text: str) -> Bound:
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        if number > 0:
            return number
        raise InputError(f"ball is above 0, not {text}; --scale 0 leaves nothing of the change")
    try:
        bound: Bound = yaml.safe_load(text) if text.startswith("{") else text
        read_bound(bound)
    except InputError as error:
        raise InputError(f"ball: {error}") from None
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"ball: {text} can't be read: {reason_of(error)}; give 0.1, q2, "
                         "{quantile: 0.6}, {of_norm: 0.05} or {of_outputs: 0.1}") from None  # fmt: skip
    return bound


REPAIRS = {
    "scale": Repair(scale, _number("scale"), "A", "ΔW times a number; 0 is the backbone"),
    "ball": Repair(
        ball,
        _bound,
        "R",
        "no singular value of ΔW above R: a number, or of each W₀ q1 … q4, {of_norm: 0.05} or {of_outputs: 0.1}",
    ),
    "frobenius": Repair(frobenius, _number("frobenius", above=0), "F", "no ‖ΔW‖_F above F, by scaling ΔW"),
    "clip": Repair(clip, _number("clip", least=1), "C", "no singular value of ΔW above C times their median"),
    "principal_rank": Repair(
        principal_rank, _count("principal_rank"), "K", "out of W₀'s K leading singular vectors, on both sides"
    ),
    "input_rank": Repair(
        input_rank,
        _directions,
        "K",
        "deaf to the K directions that its inputs share on any text; 0.9: to those that "
        "hold that share of their energy",
    ),
    "intruders": Repair(
        intruders,
        _number("intruders", above=0, most=1),
        "COSINE",
        f"nothing along the {AMONG} leading singular vectors of W₀ + ΔW that are like none of W₀'s (0.6)",
        "0.6",
    ),
    "rank": Repair(rank, _count("rank"), "R", "the nearest change of a rank"),
    "energy": Repair(energy, _number("energy", above=0, most=1), "E", "the smallest rank with this share of Σσ²"),
}
