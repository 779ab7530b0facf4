"""How large a change is, by its singular values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_spectral.spectra import SingularTriplets
from lit_spectral.spectra.partial_svd import partial_svd, singular_values
from lit_spectral.updates.delta import Delta
from lit_spectral.updates.sizes import size_of

__all__ = ["ABOVE", "Magnitude", "effective_rank", "leading_part", "magnitude"]

# Singular values above this are counted in HiRA's Fig. 4.
ABOVE = 0.005


class Magnitude(NamedTuple):
    """Sizes of ΔW.

    `spectral` ‖ΔW‖₂; `frobenius` ‖ΔW‖_F; `energy` Σσ² (HiRA Fig. 5); `rank`, the number of σ that are more than
    rounding (Fig. 7); `stable_rank` ‖ΔW‖_F² / ‖ΔW‖₂²; `effective_rank` (Fig. 8); `exceeding`, how many σ are
    above 0.005 (Fig. 4).
    """

    spectral: float
    frobenius: float
    energy: float
    rank: int
    stable_rank: float
    effective_rank: float
    exceeding: int


def magnitude(sigma: Tensor, above: float = ABOVE) -> Magnitude:
    """Of a change with these singular values (r,), falling; `above` is what is counted."""
    size = size_of(sigma)
    return Magnitude(
        size.spectral,
        size.frobenius,
        size.frobenius**2,
        size.rank,
        size.stable_rank,
        effective_rank(sigma),
        int((sigma > above).sum()),
    )


def effective_rank(sigma: Tensor) -> float:
    """exp(−Σ p log p) with p = σ / Σσ, 1 to the rank (Roy & Vetterli, 2007; HiRA App. C); 0 where all σ (r,) are 0."""
    total = float(sigma.double().sum())
    if not total > 0:
        return 0.0
    return float(torch.special.entr(sigma.double() / total).sum().exp())


def leading_part(delta: Delta, rank: int) -> tuple[Tensor, SingularTriplets]:
    """ΔW's singular values, all that aren't 0 by its shape, and its first `rank` triplets; fewer if its rank is less.

    Args:
        delta: thin, or dense; a part that multiplies W₀ is to be made dense before.
        rank: at least 1.

    Returns:
        σ (q,), falling, in float64, q being the columns of thin factors or the smaller side; and U (out, r), σ (r,) and
        V (in, r) in float64, r at most `rank` and the number of values that are more than rounding.
    """
    if delta.is_thin:
        u, sigma, v = delta.svd()
    else:
        matrix = delta.dense()
        sigma = singular_values(matrix).double()
        u, _, v = partial_svd(matrix, "top", min(rank, len(sigma))).triplets
    kept = min(rank, size_of(sigma).rank)
    return sigma, SingularTriplets(u[:, :kept], sigma[:kept], v[:, :kept])
