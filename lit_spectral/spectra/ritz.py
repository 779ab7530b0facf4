"""Singular triplets within a given span, and how near they are to the true ones, by their residuals.

Shape suffixes: `n` batch, `o` the larger side, `i` the smaller, `b` block, `r` rank.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lit_spectral.spectra.symmetric import symmetric_product

__all__ = ["LARGE", "PASS", "Solution", "end_angle", "gram", "inner_angle", "rayleigh_ritz", "thin_product"]

# A result passes when its estimated angle, in radians, is at most this.
PASS = 1e-4
# Values this near to each other, relatively, count as this far apart: rounding a weight to float32
# mixes their vectors anyway, so that none is better than another.
CLUSTER = 1e-7
# From this smaller side on, a CPU's Gram matrix comes by half a product.
LARGE = 512


class Solution(NamedTuple):
    """Triplets with falling σ: u (n, o, r), sigma (n, r), v (n, i, r); and angle (n,)."""

    u: Tensor
    sigma: Tensor
    v: Tensor
    angle: Tensor


def rayleigh_ritz(a_noi: Tensor, block_nib: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The SVD of A within the span of orthonormal columns: u, sigma, v, and Aᵀu − σv (n, i, b).

    Av = σu holds exactly, so that the norm of the last, the residual, bounds the error of both u and v: its
    component along another pair (σ', v'), divided by σ' − σ, bounds theirs.
    """
    q, triangle = torch.linalg.qr(thin_product(a_noi, block_nib))
    inner_left, sigma, inner_right = torch.linalg.svd(triangle)
    u, v = q @ inner_left, block_nib @ inner_right.mT
    return u, sigma, v, thin_product(a_noi.mT, u) - v * sigma.unsqueeze(-2)


def thin_product(a_nmk: Tensor, x_nkb: Tensor) -> Tensor:
    """A X for few columns in float64, the thin factor first: the other way CPUs take up to five times as long.

    Which of A's layouts is the slow one is BLAS's business; this way neither is (docs/performance.md).
    """
    return (x_nkb.mT @ a_nmk.mT).mT


def end_angle(values_nb: Tensor, residual_nb: Tensor, rank: int) -> Tensor:
    """Angle (n,) of the first `rank` Ritz vectors to the true ones; Ritz values fall.

    What leaks out of the block is a residual over the distance to the block's last value; what leaks
    to the block's other columns is of second order (Mathias, 1998), the product of two residuals
    over two distances. Bounding by the distance to the next value alone would be 30 times too pessimistic.
    """
    wanted = values_nb[:, :rank, None]
    smallest = CLUSTER * wanted.abs()
    outside = residual_nb[:, :rank] / (wanted - values_nb[:, None, -1:]).maximum(smallest)[..., 0]
    inside = residual_nb[:, None, rank:-1] / (wanted - values_nb[:, None, rank:-1]).maximum(smallest)
    squares: Tensor = outside.square() * (1 + inside.square().sum(-1))
    return squares.sum(-1).sqrt()


def inner_angle(
    sigma_nr: Tensor, residual_nr: Tensor, squares_ni: Tensor, chosen: Tensor, error: float = 0.0
) -> Tensor:
    """Angle (n,) of triplets to the true ones when all values are known: residual over distance to the others.

    Their squares are known, to an `error`; infinite where that leaves open which of them are the chosen ones.
    """
    others = torch.ones(squares_ni.shape[-1], dtype=torch.bool, device=squares_ni.device)
    others[chosen] = False
    if not others.any():
        return torch.zeros_like(sigma_nr[:, 0])
    lowest, highest = ((squares_ni[:, None, others] + way).clamp_min(0).sqrt() for way in (-error, error))
    distance = (lowest - sigma_nr.unsqueeze(-1)).maximum(sigma_nr.unsqueeze(-1) - highest).amin(-1)
    angle: Tensor = torch.linalg.vector_norm(residual_nr / distance.maximum(CLUSTER * sigma_nr), dim=-1)
    return angle if error == 0 else angle.where((distance > 0).all(-1), math.inf)


def gram(a_noi: Tensor) -> Tensor:
    """AᵀA. By block columns, since no product in torch spares the half that symmetry gives: 5/8 of the work."""
    size = a_noi.shape[-1]
    if a_noi.device.type == "cpu" and size >= LARGE:
        return torch.stack([symmetric_product(a_oi) for a_oi in a_noi])
    gram_nii = a_noi.new_empty(len(a_noi), size, size)
    width = max(64, -(-size // 4))
    for first in range(0, size, width):
        stop = first + width
        gram_nii[:, first:stop, first:] = a_noi[..., first:stop].mT @ a_noi[..., first:]
        gram_nii[:, stop:, first:stop] = gram_nii[:, first:stop, stop:].mT
    return gram_nii
