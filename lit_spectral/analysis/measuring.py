"""All measures of several adapters of one backbone, a map at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lit_spectral.analysis.magnitude import leading_part, magnitude
from lit_spectral.analysis.subspaces import gain_correlation, inside, projections, random_basis, similarity
from lit_spectral.analysis.weights import (
    Decay,
    error_curve,
    exponential_decay,
    ideal_low_rank,
    quartiles,
    width,
)
from lit_spectral.bars import track
from lit_spectral.errors import InputError
from lit_spectral.spectra import SingularTriplets
from lit_spectral.spectra.cache import SVDCache
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.delta import Delta
from lit_spectral.updates.intruders import Likeness, leading_left

__all__ = ["SHOWN", "SUBSPACES", "THRESHOLDS", "Analysis", "Changed", "Place", "Weight", "analyze", "place_of"]

# |cosine| below which a singular vector of W₀ + ΔW is like none of W₀'s; the table's, and the one that is shown alone.
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHOWN = 0.6
# Between a seed here and one of training: a method may have started from singular vectors that it drew.
APART = 2**31
# Of W₀, with which ΔW's are compared (MiLoRA Fig. 3).
SUBSPACES = ("top", "bottom", "random")


class Place(NamedTuple):
    """Where a map is: its layer's number, None where its path has none, and which of a layer's maps it is."""

    layer: int | None
    kind: str


class Weight(NamedTuple):
    """W₀ of one map: shape (out, in), σ (m,), ‖W₀‖_F, quartiles, decay, E(n) and the n from which it is within 5 %."""

    shape: tuple[int, int]
    sigma: Tensor
    frobenius: float
    quartiles: list[float]
    decay: Decay
    curve: Tensor
    width: int


class Changed(NamedTuple):
    """One map's ΔW: its measures by name, NaN where there is none; σ (q,); gains (k,) on W₀'s k leading directions."""

    measures: dict[str, float]
    sigma: Tensor
    gains: Tensor


@dataclass(frozen=True)
class Analysis:
    """What was measured: W₀ by path, and each source's changes by path.

    Args:
        weights: of every map that some source changes.
        changes: by source, in their order, and path.
        ideal: of each shape that there is, singular values of the ideal matrix of low rank.
        rank: dimensions of the subspaces that are compared.
        top: W₀'s leading singular directions in which energy and gains are measured.
        seed: of random subspaces.
    """

    weights: dict[str, Weight]
    changes: dict[str, dict[str, Changed]]
    ideal: dict[tuple[int, int], Tensor]
    rank: int
    top: int
    seed: int

    def ideal_width(self, shape: tuple[int, int]) -> int:
        """From which n on the ideal matrix of a shape is within 5 %."""
        return width(error_curve(self.ideal[shape]))


class _Known(NamedTuple):
    """Of one W₀: itself, its leading, smallest and drawn triplets, random bases, and how like it vectors are."""

    weight: Tensor
    parts: Mapping[str, SingularTriplets]
    random: tuple[Tensor, Tensor]
    likeness: Likeness


def place_of(path: str) -> Place:
    """A map's place by the first number in its path."""
    before, number, after = re.match(r"(.*?)(?:(?:^|\.)(\d+)\.|$)(.*)", path).groups()  # type: ignore[union-attr]
    return Place(int(number), after) if number is not None else Place(None, before)


def analyze(
    changes: Mapping[str, Mapping[str, Delta]], backbone: Backbone, rank: int, top: int, seed: int = 0
) -> Analysis:
    """Measure the changes of several sources, by source and path, beside their W₀.

    Args:
        changes: of one backbone; those of one path have one shape.
        backbone: whose they are.
        rank: of the subspaces that are compared, at least 1. Of a ΔW of a lower rank all that it has is compared.
        top: W₀'s leading singular directions for energy and gains, at least 1.
        seed: of random subspaces.

    Raises:
        InputError: the backbone lacks a map, or can't be had; `rank` or `top` is above a matrix's smaller side.
    """
    paths = {path: delta for each in changes.values() for path, delta in each.items()}
    for name, value in (("rank", rank), ("top", top)):
        for path, delta in paths.items():
            if value > min(delta.shape):
                raise InputError(f"analyze: {path} is {delta.shape[0]} x {delta.shape[1]}, and --{name} is {value}; "
                                 f"give at most {min(delta.shape)}")  # fmt: skip
    weights, cache = backbone.of(paths), SVDCache()
    values = cache.singular_values(weights)
    parts = {"top": cache.singular_triplets(weights, "top", max(rank, top))}
    parts["bottom"] = cache.singular_triplets(weights, "bottom", rank)
    parts["random"] = cache.singular_triplets(weights, "random", rank, seed + APART)
    looked: dict[str, Weight] = {}
    found: dict[str, dict[str, Changed]] = {source: {} for source in changes}
    for path in track(sorted(paths, key=_order), description="ΔW beside W₀"):
        weight, own = weights[path].float(), {part: each[path] for part, each in parts.items()}
        looked[path] = _look(weight, values[path])
        drawn = _random_bases(path, weight.shape, rank, seed)
        known = _Known(weight, own, drawn, Likeness(weight, own["top"].u))
        for source, deltas in changes.items():
            if path in deltas:
                found[source][path] = _measure(deltas[path], known, rank, top)
    ideal = {weight.shape: ideal_low_rank(weight.shape, seed) for weight in looked.values()}
    return Analysis(looked, found, ideal, rank, top, seed)


def _look(weight: Tensor, sigma: Tensor) -> Weight:
    curve = error_curve(sigma)
    shape = weight.shape[0], weight.shape[1]
    return Weight(
        shape, sigma, float(sigma.double().norm()), quartiles(sigma), exponential_decay(sigma), curve, width(curve)
    )


def _measure(delta: Delta, known: _Known, rank: int, top: int) -> Changed:
    """Of one map of one source."""
    if not delta.is_thin:
        delta = Delta(matrix=delta.dense(known.weight))
    leading = _cut(known.parts["top"], slice(top))
    sigma, own = leading_part(delta, rank)
    held = inside(delta, leading)
    gains = held.core.diagonal().clone()
    size = magnitude(sigma)
    measures: dict[str, float] = {**size._asdict()}
    measures |= {"energy_in_top": held.both, "rho_left": held.left, "rho_right": held.right}
    measures["gain_correlation"] = gain_correlation(gains, leading.sigma)
    kept = len(own.sigma)
    if kept:
        # The smallest come last.
        ends = {"top": slice(kept), "bottom": slice(-kept, None), "random": slice(kept)}
        near = {part: _cut(triplets, ends[part]) for part, triplets in known.parts.items()}
        bases = known.random[0][:, :kept], known.random[1][:, :kept]
        measures |= projections(known.weight, delta, own, near["top"], bases, size.frobenius)._asdict()
        measures |= {f"phi_{part}": similarity(own.u, each.u) for part, each in near.items()}
    likeness = known.likeness.of(leading_left(known.weight + delta.dense()), THRESHOLDS)
    measures |= {f"intruders_{each:g}": int((likeness < each).sum()) for each in THRESHOLDS}
    return Changed(measures, sigma, gains)


def _random_bases(path: str, shape: tuple[int, ...], rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """For either side of a map, by its path: maps differ, and each has its own whatever others are measured."""
    digest = hashlib.blake2b(f"{seed}/{path}".encode(), digest_size=8).digest()
    # A generator on the CPU looks at 32 bits of its seed.
    left, right = (int.from_bytes(part, "little") for part in (digest[:4], digest[4:]))
    return random_basis(shape[0], rank, left), random_basis(shape[1], rank, right)


def _cut(triplets: SingularTriplets, kept: slice) -> SingularTriplets:
    return SingularTriplets(*(part[..., kept] for part in triplets))


def _order(path: str) -> tuple[int, str]:
    """Layer by layer."""
    layer = place_of(path).layer
    return (-1 if layer is None else layer, path)
