"""Linear algebra on tensors: pure functions, no state.

Shape suffixes: `o` output features, `i` input features, `r` rank, `n` a batch of matrices of one shape.
A change of a weight is kept as factors, ΔW = left_or @ right_ri, and is never formed to take its spectrum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "FactorSpectrum",
    "Part",
    "SingularTriplets",
    "all_finite",
    "contract_to_spectral_ball",
    "factor_spectrum",
    "gram_spectrum",
    "joined_basis",
    "largest_singular_value",
    "lost_in_rounding",
    "orthogonality_error",
    "orthogonality_gradient",
    "orthogonality_pull",
    "orthonormalise",
    "polar_factor",
    "project_out_",
    "spectral_norm_step",
]

# A linear map as what it does to a vector.
Product = Callable[[Tensor], Tensor]

# Which part of a spectrum.
Part = Literal["top", "bottom", "random"]

# Below this norm the gradient of ‖XᵀX − I‖_F is taken as 0: its direction is rounding noise there.
ORTHOGONALITY_FLOOR = 1e-6


class SingularTriplets(NamedTuple):
    """Part of an SVD: U (o, r), σ (r,) and V (i, r), with weight @ V = U diag(σ); or a batch of them."""

    u: Tensor
    sigma: Tensor
    v: Tensor


class FactorSpectrum(NamedTuple):
    """SVD of left @ right without its big factors.

    `values` (n, r), largest first. `lift` (n, r, r) maps left to the left singular vectors:
    left @ lift has orthonormal columns wherever the value is not 0.
    """

    values: Tensor
    lift: Tensor


def factor_spectrum(left_nor: Tensor, right_nri: Tensor) -> FactorSpectrum:
    """Singular values of left @ right, batched, through r × r Gram matrices in float64.

    With LᵀL = KKᵀ, the eigenvalues of Kᵀ(RRᵀ)K are the squared singular values of LR: two r × r
    eigenproblems in place of a QR of every factor. Squaring costs half the digits, which float64
    has to spare: float32 factors give values exact to float32, down to 1e-8 of the largest.
    """
    left, right = left_nor.double(), right_nri.double()
    return gram_spectrum(left.mT @ left, right @ right.mT)


def gram_spectrum(gram_left_nrr: Tensor, gram_right_nrr: Tensor) -> FactorSpectrum:
    """As `factor_spectrum`, from LᵀL and RRᵀ in float64, which factors of different sizes may have in one batch."""
    eigenvalues, vectors = torch.linalg.eigh(gram_left_nrr)
    root = eigenvalues.clamp_min(0).sqrt()
    inner = (vectors * root.unsqueeze(-2)).mT @ gram_right_nrr @ (vectors * root.unsqueeze(-2))
    squares, inner_vectors = torch.linalg.eigh(inner)
    # Directions in which left vanishes carry no singular vector; dividing by their root is noise.
    kept = root > 1e-12 * root.amax(-1, keepdim=True).clamp_min(1e-300)
    inverse = torch.where(kept, root, 1.0).reciprocal() * kept
    lift = (vectors * inverse.unsqueeze(-2)) @ inner_vectors
    return FactorSpectrum(squares.clamp_min(0).sqrt().flip(-1), lift.flip(-1))


def largest_singular_value(gram_left_nrr: Tensor, gram_right_nrr: Tensor) -> Tensor:
    """‖L R‖₂, (n,), from LᵀL and RRᵀ, to 1e-6 relative of its exact value, unless large L and R cancel in L R.

    It is the root of the largest eigenvalue of M = LᵀL · RRᵀ. With t_j the trace of M's 16ʲ-th power
    once it is scaled to trace 1 before each power, Π t_j^(1/16ʲ) tends to that eigenvalue: after 20
    squarings the error is below ln(r)/2²¹. Eigenvalue routines would make a GPU wait for the host.
    """
    power = gram_left_nrr @ gram_right_nrr
    logarithm = power.new_zeros(len(power))
    for powers in range(6):
        for _ in range(4 if powers else 0):
            power = power @ power
        # At least r⁻¹⁵, unless M is 0.
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-300)
        logarithm = logarithm + trace.log() / 16**powers
        power = power / trace[:, None, None]
    return (logarithm / 2).exp()


def contract_to_spectral_ball(left_nor: Tensor, right_nri: Tensor, radius_n: Tensor) -> Tensor:
    """The left factor, (n, o, r) in float64, with which left @ right is the nearest matrix with ‖·‖₂ ≤ radius.

    Nearest by Frobenius: it has the same singular vectors and values min(σ, radius). Where the product is
    inside the ball already, the factor is exactly what it was, so that projecting twice changes nothing.
    """
    left, right = left_nor.double(), right_nri.double()
    values, lift = factor_spectrum(left, right)
    radius = radius_n.to(left).unsqueeze(-1)
    if (values[..., :1] > 1e3 * radius).any():
        # Beside values that are so much larger, Gram matrices don't show what is near the radius.
        q_left, corner_left = torch.linalg.qr(left)
        corner_right = torch.linalg.qr(right.mT).R
        u, values, _ = torch.linalg.svd(corner_left @ corner_right.mT)
        kept = u * _kept_shares(values, radius).unsqueeze(-2)
        contracted = q_left @ (kept @ (u.mT @ corner_left))
    else:
        excess = (_kept_shares(values, radius) - 1).unsqueeze(-2)
        contracted = left + left @ ((lift * excess) @ lift.mT @ (left.mT @ left))
    outside = (_kept_shares(values, radius) < 1).any(-1)
    return torch.where(outside[:, None, None], contracted, left)


def _kept_shares(values: Tensor, radius: Tensor) -> Tensor:
    # A relative slack of float32's rounding: otherwise a projected factor, cast back, leaves the ball again.
    return torch.where(values > radius * (1 + 1e-6), radius / values, 1.0)


def all_finite(weight: Tensor) -> bool:
    """Whether every entry of a tensor is finite: NaN and infinities pass through to its least or its largest."""
    # A fifth of the time of looking at each.
    return weight.numel() == 0 or bool(torch.isfinite(torch.stack(weight.detach().aminmax())).all())


def lost_in_rounding(left_nor: Tensor, right_nri: Tensor, radius_n: Tensor, precision: float) -> Tensor:
    """Of each product whether nobody can tell that it is in the ball of its radius to 1e-3 of that, (n,), bool.

    Rounding to a relative `precision` moves the product by some precision ‖left‖ ‖right‖: more than the radius where
    huge columns cancel, as when an optimizer diverges.
    """
    norms = torch.linalg.matrix_norm(left_nor.double()) * torch.linalg.matrix_norm(right_nri.double())
    lost: Tensor = ~(norms * precision <= 1e-3 * radius_n)
    return lost


def orthogonality_error(columns_nmr: Tensor) -> Tensor:
    """‖XᵀX − I‖_F of each matrix of a batch (n, m, r), shape (n,): 0 when the columns are orthonormal."""
    norms: Tensor = torch.linalg.matrix_norm(_gram_minus_identity(columns_nmr))
    return norms


def orthogonality_gradient(columns_nmr: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of `orthogonality_error` with respect to X, (n, m, r), and that error itself, (n,).

    2 X(XᵀX − I) / ‖XᵀX − I‖_F, written out since autograd would keep five intermediates a matrix
    for it. Zero where the norm is below 1e-6, where the true (sub)gradient has no defined direction.
    """
    residual = _gram_minus_identity(columns_nmr)
    norm = torch.linalg.matrix_norm(residual, keepdim=True)
    gradient = columns_nmr @ torch.where(norm < ORTHOGONALITY_FLOOR, 0.0, residual * (2 / norm))
    return gradient, norm[:, 0, 0]


def orthogonality_pull(columns_nmr: Tensor, step: float, longest: float) -> tuple[Tensor, Tensor]:
    """X after a step of length `step` against `orthogonality_gradient` that never overshoots, (n, m, r).

    X − min(2·step / ‖E‖_F, ½) X E with E = XᵀX − I. At the cap it is a Newton–Schulz step, which
    squares the error, so that repeated pulls settle at orthonormal columns instead of rattling
    round them, as a gradient of constant length would. No matrix moves by more than `longest`
    (Frobenius): from near 0 the pull would otherwise blow up whatever noise is there to norm 1.

    Returns:
        X, and ‖E‖_F as it was before, (n,).
    """
    gram = columns_nmr.mT @ columns_nmr
    residual = gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    norm = torch.linalg.matrix_norm(residual, keepdim=True)
    inner = residual * (2 * step / norm.clamp_min(1e-30)).clamp_max(0.5)
    # The length of X·inner, through the Gram matrix: everything but one product with X is r × r.
    length = (inner * (gram @ inner)).sum((-2, -1), keepdim=True).clamp_min(0).sqrt()
    inner = inner * (longest / length.clamp_min(1e-30)).clamp_max(1.0)
    return torch.baddbmm(columns_nmr, columns_nmr, inner, alpha=-1), norm[:, 0, 0]


def joined_basis(one: Tensor | None, other: Tensor, outside_of: Tensor | None = None) -> Tensor | None:
    """An orthonormal basis (m, k), float32, of the span of two sets of columns (m, ·) of about unit length.

    Less what lies in the span of a third, orthonormal, to which it is orthogonal: projecting out of one leaves the
    other's work alone. None where nothing but rounding is left.
    """
    wide = (other if one is None else torch.cat([one, other], dim=1)).double()
    if outside_of is not None:
        held = outside_of.double()
        for _ in range(2):
            wide = wide - held @ (held.mT @ wide)
    u, sizes, _ = torch.linalg.svd(wide, full_matrices=False)
    basis = u[:, sizes > 3e-6].float().contiguous()
    return basis if basis.shape[1] else None


def project_out_(columns: Sequence[Tensor], bases: Sequence[Tensor]) -> None:
    """X ← X − B(BᵀX), in place, for each X (m, r) and its basis B (m, k) of orthonormal columns, all r and k alike.

    A matrix whose ‖BᵀX‖ is below 1e-6 of ‖X‖ already, which is float32's rounding, stays as it is,
    so that projecting twice changes nothing.
    """
    inside = torch.stack([basis.mT @ x for x, basis in zip(columns, bases, strict=True)])
    sizes = torch.stack(torch._foreach_norm(list(columns), dtype=torch.float64))  # squares below 1e-38, above 1e38
    inside *= (torch.linalg.matrix_norm(inside.double()) > 1e-6 * sizes)[:, None, None]
    for x, basis, part in zip(columns, bases, inside.unbind(), strict=True):
        x.addmm_(basis, part, alpha=-1)


def orthonormalise(columns_nmr: Tensor) -> Tensor:
    """The Q of a QR decomposition whose R has a positive diagonal: Gram–Schmidt, batched, (n, m, r), m ≥ r.

    Through the Cholesky factor of the r × r Gram matrix in float64, by Householder's QR where that
    is near singular. A matrix within 1e-6·√r of orthonormal is returned as it is, so that doing it twice
    changes nothing.
    """
    wide = columns_nmr.double()
    factor, failed = torch.linalg.cholesky_ex(wide.mT @ wide)
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    if failed.any() or (pivots.amin(-1) < 1e-5 * pivots.amax(-1)).any():
        q, upper = torch.linalg.qr(wide)
        signs = torch.sign(upper.diagonal(dim1=-2, dim2=-1))
        result = q * torch.where(signs == 0, 1.0, signs).unsqueeze(-2)
    else:
        result = torch.linalg.solve_triangular(factor.mT, wide, upper=True, left=False)
    return _where_not_orthonormal(columns_nmr, result)


def polar_factor(columns_nmr: Tensor) -> Tensor:
    """X (XᵀX)^(−½), the nearest matrix with orthonormal columns, batched, (n, m, r), m ≥ r.

    Of a step that leaves the set of such matrices at right angles it keeps nothing, to first order: a change X A with a
    symmetric A, which Gram–Schmidt would turn into a rotation of the columns. Through the r × r Gram matrix in float64,
    by an SVD where that is near singular; idempotent as `orthonormalise`.
    """
    wide = columns_nmr.double()
    values, vectors = torch.linalg.eigh(wide.mT @ wide)
    if (values[..., 0] < 1e-8 * values[..., -1]).any():
        u, _, vh = torch.linalg.svd(wide, full_matrices=False)
        result = u @ vh
    else:
        result = wide @ (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT
    return _where_not_orthonormal(columns_nmr, result)


def _where_not_orthonormal(columns_nmr: Tensor, result: Tensor) -> Tensor:
    """Columns that are orthonormal to 1e-6·√r as they are, and the result of the others."""
    near = orthogonality_error(columns_nmr) < 1e-6 * columns_nmr.shape[-1] ** 0.5
    return torch.where(near[:, None, None], columns_nmr, result.to(columns_nmr.dtype))


def spectral_norm_step(times: Product, transposed_times: Product, vector_i: Tensor) -> tuple[Tensor, Tensor]:
    """One power iteration: an estimate (never above) of ‖M‖₂ and the next unit vector (i,).

    M is known by its products with vectors, M v and Mᵀu. Started from the vector of the step
    before, the estimate follows a slowly changing matrix closely.
    """
    image_o = times(vector_i)
    back_i = transposed_times(image_o)
    length = back_i.norm()
    return image_o.norm(), torch.where(length > 0, back_i / length, vector_i)


def _gram_minus_identity(columns_nmr: Tensor) -> Tensor:
    gram = columns_nmr.mT @ columns_nmr
    return gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
