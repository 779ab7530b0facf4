"""Fronts: of what a method's settings reach in score and retention, the points that none beats in both.

A setting is a point of a sweep (rates, bounds, …) at a scale of ΔW; scores and what is kept are better where they are
larger, here. Shape suffixes: `p` settings of one method, `s` seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "Reached", "Settings", "front", "kept_at", "reached", "score_at"]

Array = NDArray[np.float64]

# Seeds of which every resample is looked at: 5⁵ are 3,125.
WHOLE = 5


class Settings(NamedTuple):
    """Of one method: scores and what is kept, (p, s), NaN where a run is missing; more is better in both."""

    scores: Array
    kept: Array

    @property
    def whole(self) -> NDArray[np.bool_]:
        """(p,): those that all seeds have."""
        found: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(self.scores) & np.isfinite(self.kept), axis=1)
        return found

    def means(self, seeds: Sequence[int] | None = None) -> tuple[Array, Array]:
        """Of each setting that all seeds have, over some of the seeds, which may be repeated."""
        chosen = slice(None) if seeds is None else list(seeds)
        return self.scores[self.whole][:, chosen].mean(1), self.kept[self.whole][:, chosen].mean(1)


class Interval(NamedTuple):
    """A number, and the 95 % interval of a bootstrap over seeds; NaN where there is none.

    It is the expanded percentile interval (Hesterberg, 2015, "What teachers should know about the bootstrap"), which of
    the mean of a few normal numbers is about as wide as Student's; the plain one of five is by a third too narrow. Of
    two or three seeds it is all that resamples come to.
    """

    value: float
    low: float
    high: float


class Reached(NamedTuple):
    """One method's front beside the reference's.

    Attributes:
        score: the reference's best, less the tolerance.
        kept: on this method's front at that score; NaN where no setting of it reaches that.
        lost_over_reference: what is lost there (of all that there was), over what the reference loses there.
        score_at_kept: on this method's front, at what the reference keeps at that score.
        share_reaching: of the resamples, those in which the score is reached at all.
    """

    score: Interval
    kept: Interval
    lost_over_reference: Interval
    score_at_kept: Interval
    share_reaching: float


def front(scores: Array, kept: Array) -> tuple[Array, Array]:
    """Of settings (p,) those that none beats in both, by rising score and falling retention."""
    best, chosen = -math.inf, []
    for index in np.lexsort((-kept, -scores)):
        if kept[index] > best:
            best = float(kept[index])
            chosen.append(index)
    order = np.array(chosen[::-1], dtype=int)
    return scores[order], kept[order]


def kept_at(scores: Array, kept: Array, score: float) -> float:
    """The most that settings (p,) keep at a score, between neighbours on the front along a line; NaN above them all."""
    along, falling = front(scores, kept)
    if not len(along) or score > along[-1]:
        return math.nan
    return float(np.interp(score, along, falling))


def score_at(scores: Array, kept: Array, least: float) -> float:
    """The best score of settings (p,) that keep at least so much, as `kept_at`; NaN where none keeps it."""
    along, falling = front(scores, kept)
    if not len(along) or least > falling[0]:
        return math.nan
    return float(np.interp(least, falling[::-1], along[::-1]))


def reached(reference: Settings, other: Settings, whole: float, within: float = 0.0, draws: int = 2000) -> Reached:
    """A method's front beside the reference's, with a paired bootstrap over the seeds, of which both have the same.

    Args:
        reference: whose best score is asked of both.
        other: a method, or the reference itself.
        whole: what the backbone has of what is kept.
        within: how far below the reference's best score to look, in the score's units.
        draws: resamples of the seeds, drawn with a fixed seed; where there are few seeds, all that there are.
    """
    seeds = reference.scores.shape[1]
    if other.scores.shape[1] != seeds:
        raise ValueError(f"{other.scores.shape[1]} seeds beside {seeds}; a paired comparison needs the same")
    found = _compared(reference.means(), other.means(), whole, within)
    resamples = [
        _compared(reference.means(chosen), other.means(chosen), whole, within) for chosen in _resamples(seeds, draws)
    ]
    columns = np.array(resamples).reshape(-1, len(found))
    reaching = np.isfinite(columns[:, 1]) if len(columns) else np.array([math.isfinite(found[1])])
    score, kept, lost, score_at_kept = (
        _interval(value, column, seeds) for value, column in zip(found, columns.T, strict=True)
    )
    return Reached(score, kept, lost, score_at_kept, float(reaching.mean()))


def _compared(
    reference: tuple[Array, Array], other: tuple[Array, Array], whole: float, within: float
) -> tuple[float, float, float, float]:
    if not len(reference[0]) or not len(other[0]):
        return (math.nan,) * 4
    score = float(reference[0].max()) - within
    theirs, ours = kept_at(*reference, score), kept_at(*other, score)
    lost = whole - theirs
    return score, ours, (whole - ours) / lost if lost > 0 else math.nan, score_at(*other, theirs)


def _resamples(seeds: int, draws: int) -> Iterator[Sequence[int]]:
    """Numbers of seeds, as many as there are, repeated and left out: all ways, or so many of them; none of one seed."""
    if seeds == 1:
        return
    if seeds <= WHOLE:
        yield from itertools.product(range(seeds), repeat=seeds)
        return
    generator = np.random.default_rng(0)
    for _ in range(draws):
        yield generator.integers(seeds, size=(seeds,)).tolist()


def _interval(value: float, drawn: Array, seeds: int) -> Interval:
    """Of the resamples that have the number, where the sample has it."""
    from scipy.stats import norm, t

    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not math.isfinite(value):
        return Interval(value, math.nan, math.nan)
    tail = norm.cdf(-t.ppf(0.975, seeds - 1) * math.sqrt(seeds / (seeds - 1)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
