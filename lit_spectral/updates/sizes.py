"""How large changes of weights are, by their singular values, and where in the backbone's spectrum they lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lit_spectral.spectra.linalg import gram_spectrum
from lit_spectral.updates.delta import Pair

__all__ = ["Size", "largest", "share_inside", "size_of", "spectral_norms"]

# Of the largest singular value; what is below is float32's rounding of the factors.
ROUNDING = 1e-6


class Size(NamedTuple):
    """‖ΔW‖₂, ‖ΔW‖_F, and how many singular values are more than rounding."""

    spectral: float
    frobenius: float
    rank: int

    @property
    def stable_rank(self) -> float:
        """‖ΔW‖_F² / ‖ΔW‖₂², 1 to the rank; 0 where ΔW is 0."""
        return (self.frobenius / self.spectral) ** 2 if self.spectral else 0.0


def size_of(sigma: Tensor) -> Size:
    """Of a change with these singular values (r,), falling."""
    return Size(float(sigma[0]), float(sigma.double().norm()), int((sigma > ROUNDING * sigma[0]).sum()))


def spectral_norms(pairs: Mapping[str, Pair]) -> dict[str, float]:
    """‖L R‖₂ of each product of thin factors; those of one rank through one batch of r × r Gram matrices."""
    grams: dict[int, dict[str, tuple[Tensor, Tensor]]] = defaultdict(dict)
    for name, pair in pairs.items():
        left, right = pair.left.double(), pair.right.double()
        grams[len(right)][name] = left.mT @ left, right @ right.mT
    found: dict[str, float] = {}
    for group in grams.values():
        left_nrr, right_nrr = (torch.stack(side) for side in zip(*group.values(), strict=True))
        found |= zip(group, gram_spectrum(left_nrr, right_nrr).values[:, 0].tolist(), strict=True)
    return found


def largest(sizes: Iterable[Size]) -> Size:
    """Of all layers: the largest ‖ΔW‖₂ and rank, and √Σ‖ΔW‖_F²."""
    given = list(sizes)
    return Size(
        max((size.spectral for size in given), default=0.0),
        sum(size.frobenius**2 for size in given) ** 0.5,
        max((size.rank for size in given), default=0),
    )


def share_inside(columns: Tensor, sigma: Tensor, basis: Tensor) -> float:
    """‖QᵀΔW‖_F² / ‖ΔW‖_F², 0 to 1, of ΔW = X diag(σ) Yᵀ: how much of it a subspace holds; 0 where ΔW is 0.

    Args:
        columns: its singular vectors on the side of the subspace, X (m, r).
        sigma: (r,).
        basis: orthonormal Q (m, k).
    """
    total = float(sigma.double().square().sum())
    inside = (basis.double().mT @ columns.double()) * sigma.double()
    return float(inside.square().sum()) / total if total else 0.0
