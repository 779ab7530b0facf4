"""Intruder dimensions: leading singular vectors of W₀ + ΔW that are like none of W₀'s.

(Shuttleworth et al., LoRA vs full fine-tuning: an illusion of equivalence, 2410.21228.)

Found from the leading vectors of either; all of W₀'s are computed only where these leave it open.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from lit_spectral.spectra.partial_svd import partial_svd
from lit_spectral.spectra.ritz import gram
from lit_spectral.updates.delta import Delta
from lit_spectral.updates.sizes import size_of

__all__ = ["AMONG", "KNOWN", "Likeness", "leading_left", "without_intruders"]

log = logging.getLogger(__name__)

# Leading singular vectors of W₀ + ΔW among which intruders are looked for.
AMONG = 10
# Leading singular vectors of W₀ that mostly show, without all others, which these are like.
KNOWN = 32
# Of looking for intruders; a dozen are many.
MOST_ROUNDS = 100


class Likeness:
    """How like W₀'s left singular vectors other unit vectors are.

    Args:
        weight: W₀ (out, in).
        leading: some of its leading left singular vectors (out, k).
    """

    def __init__(self, weight: Tensor, leading: Tensor) -> None:
        self._weight, self._basis = weight, leading.double()
        self._has_all = leading.shape[1] == min(weight.shape)

    def of(self, columns: Tensor, thresholds: Iterable[float]) -> Tensor:
        """The largest |cosine| of each unit column (out, n) with a left singular vector of W₀, (n,) in float64.

        Where the leading ones show on which side of every threshold it lies, it is the largest with these. They
        leave it open if a column is like none of them, and has enough outside of their span to be like another.
        Then all are computed, once.
        """
        cosines = self._basis.mT @ columns.double()
        largest = cosines.abs().amax(0)
        elsewhere = 1 - cosines.square().sum(0)
        is_open = [bool(((largest < each) & (elsewhere >= each**2)).any()) for each in thresholds]
        if self._has_all or not any(is_open):
            return largest
        self._basis, self._has_all = _all_left(self._weight), True
        found: Tensor = (self._basis.mT @ columns.double()).abs().amax(0)
        return found


def leading_left(matrix: Tensor, among: int = AMONG) -> Tensor:
    """The leading left singular vectors of W₀ + ΔW (out, in), at most as many as it has a rank, (out, n) in float64."""
    u, sigma, _ = partial_svd(matrix, "top", min(among, *matrix.shape)).triplets
    return u[:, : size_of(sigma).rank]


def without_intruders(delta: Delta, weight: Tensor, leading: Tensor, threshold: float, among: int = AMONG) -> Delta:
    """ΔW ← ΔW − Σ u uᵀ ΔW over intruders u, until W₀ + ΔW has none.

    They are those of the `among` leading left singular vectors of W₀ + ΔW whose |cosine| with every left singular
    vector of W₀ is below the threshold. In their paper, and in peft, W₀ + ΔW is scaled down along u, W₀'s part with
    it; here all of ΔW's part goes and W₀'s stays, so that a thin ΔW stays thin. Since another vector takes the place
    among the leading ones, it is done again until none is found. A round costs the leading triplets of a dense matrix.

    Args:
        delta: ΔW (out, in).
        weight: W₀ (out, in).
        leading: some leading left singular vectors of W₀ (out, k).
        threshold: above 0, at most 1.
        among: at least 1.
    """
    likeness = Likeness(weight, leading)
    for _ in range(MOST_ROUNDS):
        change = delta.dense(weight)
        u = leading_left(weight.float() + change, among)
        found = u[:, likeness.of(u, [threshold]) < threshold]
        # What is like none of W₀'s, and not by ΔW's doing, would be found for ever.
        if not float((found.mT @ change.double()).norm()) > 1e-5 * float(change.double().norm()):
            return delta
        delta = delta.outside(found, None, weight)
    log.warning("after %d rounds of taking intruders out there are some left", MOST_ROUNDS)
    return delta


def _all_left(weight: Tensor) -> Tensor:
    """Left singular vectors of W₀ (out, in), (out, m) in float64, but for those to values that are rounding's.

    From the eigenvectors of the smaller side's Gram matrix, a quarter of an SVD's time: what that rounds is far below
    what a threshold shows.
    """
    wide = weight.double()
    if wide.shape[0] <= wide.shape[1]:
        vectors: Tensor = torch.linalg.eigh(gram(wide.mT.unsqueeze(0))[0]).eigenvectors
        return vectors
    squares, right = torch.linalg.eigh(gram(wide.unsqueeze(0))[0])
    kept = squares > 1e-12 * squares[-1]
    left: Tensor = wide @ right[:, kept] / squares[kept].sqrt()
    return left
