"""Correlations of a few points, with how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Correlation", "correlation"]


class Correlation(NamedTuple):
    """Of so many `points`, −1 to 1, with its 95 % interval; all NaN where one side doesn't vary."""

    value: float
    low: float
    high: float
    points: int

    @property
    def text(self) -> str:
        """As in tables."""
        if np.isnan(self.value):
            return "–"
        interval = "" if np.isnan(self.low) else f"\n[{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.value:+.2f}{interval}"


def correlation(
    one: Sequence[float], other: Sequence[float], ranks: bool = False, resamples: int = 10_000, seed: int = 0
) -> Correlation:
    """Pearson's correlation, or with `ranks` Spearman's, with the percentile interval of a bootstrap over points.

    Resamples in which a side doesn't vary have no correlation, and are left out. Points of which one number is NaN
    are left out before.

    Args:
        one: n numbers.
        other: n numbers beside them.
        ranks: of ranks, equal numbers sharing their mean.
        resamples: how many.
        seed: of what is drawn.
    """
    pairs = np.array([one, other], dtype=np.float64)
    pairs = pairs[:, ~np.isnan(pairs).any(0)]
    count = pairs.shape[1]
    value = float(_correlations(pairs[:, None], ranks)[0]) if count > 1 else np.nan
    if count < 3 or np.isnan(value):
        return Correlation(value, np.nan, np.nan, count)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    low, high = np.nanpercentile(_correlations(pairs[:, drawn], ranks), [2.5, 97.5])
    return Correlation(value, float(low), float(high), count)


def _correlations(pairs: NDArray[np.float64], ranks: bool) -> NDArray[np.float64]:
    """Of (2, resamples, n); NaN where a side is constant."""
    from scipy.stats import rankdata

    values = rankdata(pairs, axis=-1) if ranks else pairs
    centred = values - values.mean(-1, keepdims=True)
    # A constant side's mean is off by rounding.
    varies = (pairs != pairs[..., :1]).any(-1).all(0)
    sizes = np.sqrt(np.square(centred).sum(-1).prod(0))
    products = centred.prod(0).sum(-1)
    found: NDArray[np.float64] = np.full_like(products, np.nan)
    np.divide(products, sizes, out=found, where=varies & (sizes > 0))
    return found
