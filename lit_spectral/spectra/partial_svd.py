"""Parts of singular value decompositions, batched over matrices of one shape.

Either end comes from subspace iteration on the Gram matrix of the smaller side: the leading
eigenvectors of AᵀA, or of its inverse through a Cholesky factorisation. Every answer is checked by
its residuals in float64; what does not pass is computed again in a slower and surer way:

    ends:  iteration (top: in float32, then in float64) → `eigh` of the Gram → full SVD → full SVD on the CPU
    inner: the Gram made tridiagonal (large, on the CPU; in float32, then in float64) → `eigh` …

The lower end of a large oblong matrix begins as inner triplets do.

Shape suffixes: `n` batch, `o` the larger side, `i` the smaller, `b` block, `r` rank.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_spectral.spectra.linalg import Part, SingularTriplets, all_finite
from lit_spectral.spectra.ritz import LARGE, PASS, Solution, end_angle, gram, inner_angle, rayleigh_ritz, thin_product
from lit_spectral.spectra.symmetric import Reduction

__all__ = ["PartialSVD", "check_weight", "drawn_places", "inner_svd", "partial_svd", "singular_values"]

log = logging.getLogger(__name__)

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

# Products with the operator after which iteration gives up.
MOST_PRODUCTS = 100
# A smaller side of fewer blocks than this goes to `eigh`, which is as fast there.
FEWEST_BLOCKS = 6
# Refinements of inner triplets after which they are found in float64 from the start; each is worth two digits or so.
MOST_REFINEMENTS = 6


class PartialSVD(NamedTuple):
    """Singular triplets and how good they are.

    `angle` (...,) estimates the largest angle, in radians, between the computed and the true
    singular subspaces from residuals and the distances to other singular values. It is large where
    the subspace itself is ill-defined, as at the border of equal values.
    """

    triplets: SingularTriplets
    angle: Tensor


def check_weight(weight: Tensor, rank: int = 1) -> None:
    """Raise ValueError if a matrix (..., o, i) holds NaN or infinity, or if rank > min(o, i)."""
    if not all_finite(weight):
        raise ValueError("the weight holds NaN or infinity; reload the backbone from a sound checkpoint")
    if rank > min(weight.shape[-2:]):
        raise ValueError(f"rank {rank} is above min{tuple(weight.shape[-2:])} = {min(weight.shape[-2:])}")


def singular_values(weight: Tensor) -> Tensor:
    """All singular values of matrices (..., o, i), largest first, shape (..., min(o, i)).

    float64 stays float64 and is decomposed as it is. Everything else comes out in float32, through
    the eigenvalues of a float64 Gram matrix: exact to float32's rounding down to 1e-4 of the largest
    value, and off by at most about 1e-8 of it below. Raises ValueError when a weight holds NaN or
    infinity.
    """
    check_weight(weight)
    a_noi = _tall(weight)
    if weight.dtype == torch.float64:
        values: Tensor = _on_cpu_if_need_be(torch.linalg.svdvals, a_noi)
    else:
        squares = _on_cpu_if_need_be(torch.linalg.eigvalsh, gram(a_noi.double()))
        values = squares.clamp_min(0).sqrt().flip(-1).float()
    return values.reshape(*weight.shape[:-2], a_noi.shape[-1])


def partial_svd(weight: Tensor, part: Part, rank: int, seed: int = 0) -> PartialSVD:
    """`rank` singular triplets of matrices (..., o, i): the largest, the smallest, or drawn at random.

    Returns U (..., o, r), σ (..., r) and V (..., i, r) in float64, whatever the weight's dtype, with
    orthonormal columns. `top` and `bottom` lie within 1e-4 rad of the true singular subspaces wherever
    those are well-defined. weight @ V = U diag(σ) to float64's precision if o ≥ i, or weightᵀ @ U = V diag(σ)
    if o < i; the other of the two to that angle. σ falls, but `random` keeps
    the order of its draw, which depends on `seed` and min(o, i) alone: one draw for a whole batch, and
    that of a smaller rank is its beginning. Raises ValueError when rank > min(o, i), or when a weight
    holds NaN or infinity.

    The iteration is filtered by Chebyshev polynomials (Zhou, Saad, Tiago and Chelikowsky, 2006).
    """
    check_weight(weight, rank)
    count = min(weight.shape[-2:])
    if part == "random":
        return inner_svd(weight, drawn_places(count, rank, seed))
    # Columns beyond the rank, for speed: convergence goes by the gap to the last of them.
    block = rank + max(16, rank // 2, count // 64)
    solvers: list[Callable[[Tensor], Solution]] = []
    if count >= FEWEST_BLOCKS * block:
        # On the CPU whatever the default device is: Lightning makes it the GPU while a model is configured.
        generator = torch.Generator("cpu").manual_seed(seed)
        start_ib = torch.randn(count, block, generator=generator, device="cpu").to(weight.device)
        solvers.append(partial(_top if part == "top" else _bottom, start_ib=start_ib, rank=rank))
    chosen = torch.arange(rank, device=weight.device) + (0 if part == "top" else count - rank)
    if part == "bottom" and weight.device.type == "cpu" and count >= LARGE and _is_oblong(weight):
        solvers.insert(0, partial(_from_reduction, chosen=chosen, dtype=torch.float32))
    return _solved(weight, [*solvers, partial(_from_gram, chosen=chosen), partial(_from_full_svd, chosen=chosen)])


def drawn_places(count: int, rank: int, seed: int) -> Tensor:
    """The places of `rank` of `count` singular values, drawn at random, (rank,): the first of a draw of all."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(count, generator=generator, device="cpu")[:rank]


def inner_svd(weight: Tensor, places: Tensor) -> PartialSVD:
    """The singular triplets of matrices (..., o, i) at `places` (r,), distinct, of their falling values.

    In the order of `places`; otherwise as `partial_svd` returns them, and with its errors. Of the other triplets
    no more is computed than shows that these are the ones, so that a quantile of a large matrix is best had
    from its neighbours.
    """
    check_weight(weight, len(places))
    chosen, order = places.to(weight.device).sort()
    solvers: list[Callable[[Tensor], Solution]] = []
    if weight.device.type == "cpu" and min(weight.shape[-2:]) >= LARGE:
        solvers = [partial(_from_reduction, chosen=chosen, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    solvers += [partial(_from_gram, chosen=chosen), partial(_from_full_svd, chosen=chosen)]
    (u, sigma, v), angle = _solved(weight, solvers)
    order = order.argsort()
    return PartialSVD(SingularTriplets(u[..., order], sigma[..., order], v[..., order]), angle)


def _solved(weight: Tensor, solvers: list[Callable[[Tensor], Solution]]) -> PartialSVD:
    """The result in the shape of the weight (..., o, i), whichever side is the smaller."""
    u, sigma, v, angle = _first_that_passes(solvers, _tall(weight))
    if weight.shape[-2] < weight.shape[-1]:
        u, v = v, u
    lead = weight.shape[:-2]
    u, sigma, v = (found.reshape(*lead, *found.shape[1:]) for found in (u, sigma, v))
    return PartialSVD(SingularTriplets(u, sigma, v), angle.reshape(lead))


def _first_that_passes(solvers: list[Callable[[Tensor], Solution]], a_noi: Tensor) -> Solution:
    """Each matrix's result by the first solver whose result passes, or by the last."""
    solve, *others = solvers
    try:
        found = solve(a_noi)
    except LinAlgError:
        if not others:
            raise
        return _first_that_passes(others, a_noi)
    failed = ~(found.angle <= PASS)  # NaN fails
    if others and failed.any():
        log.debug("%d of %d matrices did not pass; trying a surer way", int(failed.sum()), len(failed))
        for old, new in zip(found, _first_that_passes(others, a_noi[failed]), strict=True):
            old[failed] = new
    return found


def _top(a_noi: Tensor, start_ib: Tensor, rank: int) -> Solution:
    """The largest by iteration in float32, which float64 continues where rounding stopped it short."""
    operator = partial(torch.matmul, gram(a_noi.float()))
    block_nib = _leading_eigenvectors(operator, start_ib.expand(len(a_noi), -1, -1), rank, PASS / 2).double()
    a_noi = a_noi.double()
    found = _end_of_span(a_noi, block_nib, rank, "top")
    if (found.angle <= PASS).all():
        return found
    # A few products are left to do, for which a Gram matrix in float64 does not pay.
    block_nib = _leading_eigenvectors(
        lambda x_nib: thin_product(a_noi.mT, thin_product(a_noi, x_nib)), block_nib, rank, PASS / 2
    )
    return _end_of_span(a_noi, block_nib, rank, "top")


def _bottom(a_noi: Tensor, start_ib: Tensor, rank: int) -> Solution:
    """The smallest by iteration with the inverse of the Gram matrix; float32 begins it where that can."""
    a_noi = a_noi.double()
    gram_nii = gram(a_noi)
    # A multiple of the identity changes no eigenvector, and lets singular matrices be factorised.
    diagonal = gram_nii.diagonal(dim1=-2, dim2=-1)
    diagonal += 1e-15 * diagonal.sum(-1, keepdim=True)
    factor_nii = torch.linalg.cholesky(gram_nii)

    def inverse(x_nib: Tensor) -> Tensor:  # cholesky_solve would copy the factor every time
        half_nib = torch.linalg.solve_triangular(factor_nii, x_nib, upper=False)
        whole_nib: Tensor = torch.linalg.solve_triangular(factor_nii.mT, half_nib, upper=True)
        return whole_nib

    block_nib = start_ib.expand(len(a_noi), -1, -1)
    if _is_oblong(a_noi):
        # The inverse bears float32, and pays to be formed.
        operator = partial(torch.matmul, torch.cholesky_inverse(factor_nii).float())
        block_nib = _leading_eigenvectors(operator, block_nib, rank, PASS / 2)
        # Rounding's share of large singular vectors is small in v, but not in u: one solution removes it.
        block_nib = inverse(block_nib.double())
        found = _end_of_span(a_noi, block_nib, rank, "bottom")
        if (found.angle <= PASS).all():
            return found
    block_nib = _leading_eigenvectors(inverse, block_nib.double(), rank, PASS / 4)
    return _end_of_span(a_noi, block_nib, rank, "bottom")


def _end_of_span(a_noi: Tensor, block_nib: Tensor, rank: int, part: Part) -> Solution:
    """The first or last triplets of A within the span of the block, and how good they are."""
    u, sigma, v, leak = rayleigh_ritz(a_noi, torch.linalg.qr(block_nib)[0])
    residual = torch.linalg.vector_norm(leak, dim=-2)
    if part == "top":
        wanted, angle = slice(0, rank), end_angle(sigma, residual, rank)
    else:
        wanted, angle = slice(-rank, None), end_angle(-sigma.flip(-1), residual.flip(-1), rank)
    return Solution(u[..., wanted], sigma[..., wanted], v[..., wanted], angle)


def _leading_eigenvectors(operator: Callable[[Tensor], Tensor], x_nib: Tensor, rank: int, stop: float) -> Tensor:
    """Columns (n, i, b) whose span holds the `rank` leading eigenvectors of a positive operator.

    The columns beyond `rank` make the iteration converge, at the speed of the gap to the last of them.
    """
    # How much more than the last column the first may grow before rounding drowns the last.
    growth = math.acosh(torch.finfo(x_nib.dtype).eps ** -0.8)
    x_nib, _ = torch.linalg.qr(operator(torch.linalg.qr(x_nib)[0]))
    products, last_angle = 1, math.inf
    while True:
        image_nib: Tensor = operator(x_nib)
        products += 1
        projected = x_nib.mT @ image_nib
        values, rotation = torch.linalg.eigh((projected + projected.mT) / 2)
        values, rotation = values.flip(-1), rotation.flip(-1)
        x_nib, image_nib = x_nib @ rotation, image_nib @ rotation
        residual = torch.linalg.vector_norm(image_nib - x_nib * values.unsqueeze(-2), dim=-2)
        angle = float(end_angle(values, residual, rank).max())
        stalled = not (angle < last_angle / 2 or angle > 0.1)  # at rounding's floor, or NaN
        if angle <= stop or stalled or products >= MOST_PRODUCTS:
            return image_nib
        last_angle = angle
        # A Chebyshev polynomial stays in [−1, 1] on [0, edge], which holds the unwanted eigenvalues, and
        # grows as cosh(degree · acosh) above. Its degree: no more than is needed or than the block bears.
        edge = values[:, -1:].clamp_min(torch.finfo(x_nib.dtype).eps * float(values.max()))
        rates = (2 * values / edge - 1).clamp_min(1).acosh()
        needed = math.acosh(1 + angle / stop) / max(float(rates[:, rank - 1].min()), 1e-2)
        bearable = growth / max(float(rates[:, 0].max()), 1e-2)
        degree = max(2, math.ceil(min(needed, bearable)))
        scale = (2 / edge).unsqueeze(-1)
        before, x_nib = x_nib, scale * image_nib - x_nib
        for _ in range(degree - 1):
            before, x_nib = x_nib, 2 * (scale * operator(x_nib) - x_nib) - before
        products += degree - 1
        x_nib, _ = torch.linalg.qr(x_nib)


def _from_reduction(a_noi: Tensor, chosen: Tensor, dtype: torch.dtype) -> Solution:
    """The triplets at places `chosen`, rising, from Gram matrices that are made and made tridiagonal in `dtype`."""
    found = [_refined(a_oi, chosen, dtype) for a_oi in a_noi]
    return Solution(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _refined(a_oi: Tensor, chosen: Tensor, dtype: torch.dtype) -> Solution:
    """Of one matrix, a batch of one: from eigenvectors of Q T Qᵀ, whose rounding is removed by residuals in float64.

    With (θ, x) nearly an eigenpair of the Gram matrix G, x ← x − Q (T − θ)⁻¹ Qᵀ (G x − θ x): a Newton step, in which
    Q T Qᵀ stands for G. Of an error it leaves what T's own is of the distance to the next value.
    """
    reduction = Reduction(gram(a_oi.to(dtype).unsqueeze(0))[0])
    squares = reduction.values().flip(-1)
    own_ir = reduction.vectors_of_t((len(squares) - 1 - chosen).tolist())
    a_noi, block_ir, last_angle = a_oi.double().unsqueeze(0), reduction.turned(own_ir), math.inf
    for refinements in range(MOST_REFINEMENTS + 1):
        u, sigma, v, leak = rayleigh_ritz(a_noi, torch.linalg.qr(block_ir)[0].unsqueeze(0))
        found = sigma[0].square()
        # Where T puts the chosen values shows how far it may be off with the others.
        error = 4 * float((found - squares[chosen]).abs().max()) + torch.finfo(dtype).eps * float(squares[0])
        angle = inner_angle(sigma, torch.linalg.vector_norm(leak, dim=-2), squares.unsqueeze(0), chosen, error)
        if not PASS < float(angle) <= last_angle * 0.7 or refinements == MOST_REFINEMENTS:
            break
        last_angle = float(angle)
        step_ir = reduction.solved(found, reduction.turned(leak[0] * sigma[0], back=True))
        step_ir -= own_ir * (own_ir * step_ir).sum(0)  # T − θ is all but singular along it
        block_ir = v[0] - reduction.turned(step_ir)
    return Solution(u, sigma, v, angle)


def _from_gram(a_noi: Tensor, chosen: Tensor) -> Solution:
    """The triplets at places `chosen`, ascending, from all eigenvectors of the Gram matrix."""
    a_noi = a_noi.double()
    squares, vectors = torch.linalg.eigh(gram(a_noi))
    u, sigma, v, leak = rayleigh_ritz(a_noi, vectors.flip(-1)[..., chosen])
    residual = torch.linalg.vector_norm(leak, dim=-2)
    return Solution(u, sigma, v, inner_angle(sigma, residual, squares.flip(-1), chosen))


def _from_full_svd(a_noi: Tensor, chosen: Tensor) -> Solution:
    """The triplets at places `chosen`, ascending, from all of them."""
    a_noi = a_noi.double()
    left, values, right = _on_cpu_if_need_be(partial(torch.linalg.svd, full_matrices=False), a_noi)
    u, sigma, v = left[..., chosen], values[..., chosen], right.mT[..., chosen]
    residual = torch.linalg.vector_norm(a_noi.mT @ u - v * sigma.unsqueeze(-2), dim=-2)
    return Solution(u, sigma, v, inner_angle(sigma, residual, values.square(), chosen))


def _is_oblong(weight: Tensor) -> bool:
    """Whether one side is much the larger: such weights seldom have values whose squares float32 loses."""
    return max(weight.shape[-2:]) >= 1.5 * min(weight.shape[-2:])


def _tall(weight: Tensor) -> Tensor:
    """The matrices as one batch in float32 or float64, transposed if need be so that the smaller side comes last."""
    weight = weight.detach().reshape(-1, *weight.shape[-2:])
    weight = weight if weight.dtype == torch.float64 else weight.float()
    return weight.mT if weight.shape[-2] < weight.shape[-1] else weight


def _on_cpu_if_need_be(decompose: Callable[[Tensor], Any], matrix: Tensor) -> Any:
    """`decompose(matrix)`; on the CPU where a GPU's solver does not converge, as LAPACK's mostly does."""
    try:
        return decompose(matrix)
    except LinAlgError:
        found = decompose(matrix.cpu())
        return found.to(matrix.device) if isinstance(found, Tensor) else [part.to(matrix.device) for part in found]
