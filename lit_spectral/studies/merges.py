"""Which merges are measured, what becomes of the tasks' scores, and how sure a difference is: no model, no files."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lit_spectral.comparison.results import Difference
from lit_spectral.errors import InputError

__all__ = ["Draw", "Score", "bootstrap", "draws"]

# One adapter a task: (task, seed), in the order of the tasks.
Draw = tuple[tuple[str, int], ...]
# Merges that are measured without being asked to draw from them.
MOST = 10_000
# Entries of the resamples that are drawn at once.
AT_ONCE = 2**20


class Score(NamedTuple):
    """A task's metric of its own adapter alone, and of a merge that it is part of."""

    before: float
    after: float
    higher_is_better: bool

    @property
    def change(self) -> float:
        """After − before."""
        return self.after - self.before

    @property
    def drop(self) -> float:
        """By how much it has become worse."""
        return -self.change if self.higher_is_better else self.change

    def fails(self, tau: float) -> bool:
        """Whether it lost more than 1 − τ of what it was: After < τ · Before (HiP-LoRA, appendix C.3).

        So for scores above 0; of losses the rise is what is lost, and of scores below 0 it is a share of their size.
        One that isn't finite any more fails.
        """
        return not self.drop <= (1 - tau) * abs(self.before)


def draws(
    seeds: Mapping[str, Sequence[int]], sizes: Sequence[int], samples: int | None = None, seed: int = 0
) -> list[Draw]:
    """Merges of one adapter a task, by size: all that there are, or some of them (HiP-LoRA, appendix C.3).

    Of each size a set of tasks is drawn uniformly, then a seed for each of them; no draw comes twice. More samples are
    those that fewer would be, and others.

    Args:
        seeds: of each task, those of its adapters.
        sizes: how many tasks, each from 2 to all of them.
        samples: of each size; None for all, and where there are no more.
        seed: of what is drawn.

    Raises:
        InputError: a size that there isn't, or more than 10,000 merges, none of which is drawn.
    """
    found: list[Draw] = []
    for size in sizes:
        if not 2 <= size <= len(seeds):
            raise InputError(f"merge-study: merges are of 2 to {len(seeds)} of the tasks, not of {size}; give others")
        subsets = list(itertools.combinations(seeds, size))
        count = sum(math.prod(len(seeds[task]) for task in subset) for subset in subsets)
        if samples is None and count > MOST:
            raise InputError(f"merge-study: there are {count:,} merges of {size} tasks; give --samples, 100 say")
        if samples is None or samples >= count:
            found += [tuple(zip(s, c, strict=True)) for s in subsets for c in itertools.product(*(seeds[t] for t in s))]
        else:
            found += itertools.islice(_drawn(seeds, subsets, random.Random(f"{seed}/{size}")), samples)
    return found


def _drawn(
    seeds: Mapping[str, Sequence[int]], subsets: Sequence[Sequence[str]], generator: random.Random
) -> Iterator[Draw]:
    """Draws without end, each once."""
    seen = set()
    while True:
        draw = tuple((task, generator.choice(seeds[task])) for task in generator.choice(subsets))
        if draw not in seen:
            seen.add(draw)
            yield draw


def bootstrap(differences: Sequence[Sequence[float]], resamples: int = 10_000, seed: int = 0) -> Difference:
    """Mean over merges of the mean over their tasks, with the 95 % interval of a hierarchical paired bootstrap.

    A resample draws as many merges with replacement, and within each as many of its tasks. Merges that share adapters
    are taken to be independent: the interval is of these adapters, and not of what other seeds would train.

    Args:
        differences: one method's minus another's, a list a merge; of one value where a merge has no more.
        resamples: how many.
        seed: of what is drawn.

    Returns:
        NaN for bounds of a single merge, and for all where a difference isn't finite.
    """
    if not all(math.isfinite(value) for each in differences for value in each):
        return Difference(math.nan, math.nan, math.nan)
    count, most = len(differences), max(map(len, differences))
    sizes = np.array([len(each) for each in differences])
    values = np.zeros((count, most))
    for row, each in enumerate(differences):
        values[row, : len(each)] = each
    mean = float((values.sum(1) / sizes).mean())
    if count == 1:
        return Difference(mean, math.nan, math.nan)
    generator, found = np.random.default_rng(seed), []
    step = max(1, AT_ONCE // (count * most))
    for start in range(0, resamples, step):
        merges = generator.integers(count, size=(min(step, resamples - start), count))
        tasks = (generator.random((*merges.shape, most)) * sizes[merges][..., None]).astype(int)
        inside = np.arange(most) < sizes[merges][..., None]
        drawn = np.where(inside, values[merges[..., None], tasks], 0).sum(-1) / sizes[merges]
        found.append(drawn.mean(-1))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return Difference(mean, float(low), float(high))
