"""Rules by which changes of one weight become one: each a function, and a row of `RULES`.

Every rule is homogeneous: all changes times c > 0 give the result times c. What papers multiply a merged change by is
therefore in the weights: 0.4 for each in place of 1 and a scale of 0.4.

Shape suffixes: `o` output features, `r` rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_spectral.updates.delta import Delta, Pair

__all__ = ["RULES", "Changes", "Rule", "add", "dare", "iso_c", "knots", "ties", "tsv"]

# Singular values below this share of the largest are float32's rounding, and their vectors arbitrary.
ROUNDING = 1e-6


class Changes(NamedTuple):
    """Changes of one weight, times their updates' weights, by the place of the update; an update without one lacks."""

    path: str
    deltas: Mapping[int, Delta]


class Rule(NamedTuple):
    """What makes one change of several, and the settings that it takes, with what they are unless given."""

    merge: Callable[..., Delta]
    settings: Mapping[str, Any]


def add(changes: Changes) -> Delta:
    """Σ ΔW_t, exact: factors side by side (task arithmetic; Ilharco et al., 2023)."""
    return Delta.added(changes.deltas.values())


def ties(changes: Changes, density: float) -> Delta:
    """TIES (Yadav et al., 2023, algorithm 1) on true ΔW, dense.

    Args:
        changes: none with a Hadamard part.
        density: share of each ΔW_t's entries that are kept, the largest by magnitude, in (0, 1].
    """
    return Delta(matrix=_agreed((delta.dense() for delta in changes.deltas.values()), density))


def dare(changes: Changes, density: float, seed: int) -> Delta:
    """Σ of what is left of each ΔW_t after DARE (Yu et al., 2023, eq. 2–3): dropped at random, rescaled; dense.

    Args:
        changes: none with a Hadamard part.
        density: probability that an entry is kept, in (0, 1]; 1 − the paper's drop rate.
        seed: what is dropped depends on it, the path and the update's place alone.
    """
    total: Tensor | None = None
    for place, delta in changes.deltas.items():
        matrix = delta.dense()
        digest = hashlib.blake2b(f"{seed}/{changes.path}/{place}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
        matrix.mul_(torch.rand(matrix.shape, generator=generator) < density).div_(density)
        total = matrix if total is None else total.add_(matrix)
    return Delta(matrix=total)


def tsv(changes: Changes, rank: int | None) -> Delta:
    """TSV-Merge (Gargiulo et al., 2024, algorithm 1): each task's leading triplets, made orthogonal between tasks.

    U Σ Vᵀ with U = [U_1 … U_T] and V alike replaced by the nearest matrices with orthonormal columns, their polar
    factors. T counts the updates that change this weight.

    Each gives its leading k = ⌊min(out, in) / T⌋ triplets, as the paper's dense changes do; thin ones have fewer, and
    give all. Where a rank is asked for, k = ⌊rank / T⌋, so that every task has its share of it. Directions that tasks
    have in common to the last digit are in the polar factor once.

    Args:
        changes: none with a Hadamard part.
        rank: of the result; None for no bound.
    """
    deltas = changes.deltas.values()
    share = max(1, (rank or min(next(iter(deltas)).shape)) // len(deltas))
    u, sigma, v = (torch.cat(parts, dim=-1) for parts in zip(*(_triplets(each, share) for each in deltas), strict=True))
    return _product(_polar(u) * sigma, _polar(v).mT)


def knots(changes: Changes, density: float) -> Delta:
    """KnOTS with TIES (Stoica et al., 2024, section 4): TIES in coordinates that all tasks share; thin stays thin.

    The SVD of [ΔW_1 … ΔW_T], columns side by side, is U Σ [V_1ᵀ … V_Tᵀ]. TIES goes over the blocks Σ V_tᵀ, and U
    carries its result back. Only directions whose value is not 0 have a row in the blocks, which is what `density` is
    a share of. The mean of the blocks is that of the ΔW_t, which is `add` with weights of 1/T.

    Args:
        changes: none with a Hadamard part.
        density: share of each block's entries that are kept, the largest by magnitude, in (0, 1].
    """
    lefts, rights, bases = [], [], []
    for delta in changes.deltas.values():
        left, right = _factors(delta)
        basis, corner = torch.linalg.qr(right.mT.double())
        lefts.append(left.double())
        rights.append(corner.mT)
        bases.append(basis)
    basis_or, corner = torch.linalg.qr(torch.cat(lefts, 1))
    inner = [part @ right for part, right in zip(corner.split([len(r) for r in rights], 1), rights, strict=True)]
    u, sigma, vt = torch.linalg.svd(torch.cat(inner, 1), full_matrices=False)
    kept = _kept(sigma)
    coordinates = (sigma[:kept, None] * vt[:kept]).split([basis.shape[1] for basis in bases], 1)
    merged = _agreed((c @ basis.mT for c, basis in zip(coordinates, bases, strict=True)), density)
    return _product(basis_or @ u[:, :kept], merged)


def iso_c(changes: Changes) -> Delta:
    """Iso-C (Marczak et al., 2025, section 4.1): the sum, with all its singular values replaced by their mean.

    The paper's changes have full rank. The mean here is over the r directions that the sum has, not over min(out, in):
    zeros of a thin sum say nothing of its tasks, would shrink the change by r / min(out, in), and the directions that
    they would raise to the mean are arbitrary.
    """
    u, sigma, v = _triplets(Delta.added(changes.deltas.values()))
    return _product(u * sigma.mean(), v.mT)


RULES = {
    "add": Rule(add, {}),
    "ties": Rule(ties, {"density": 0.2}),  # as its paper
    "dare": Rule(dare, {"density": 0.5, "seed": 0}),
    "tsv": Rule(tsv, {}),
    "knots": Rule(knots, {"density": 0.2}),
    "iso-c": Rule(iso_c, {}),
}


def _agreed(matrices: Iterable[Tensor], density: float) -> Tensor:
    """TIES of matrices, which are changed: trim, elect signs by summed mass, mean of those that have that sign.

    Entries as large as the least that is kept are kept too. Where masses cancel no sign is elected
    and the result is 0. One matrix at a time is looked at.
    """
    masses: list[Tensor] = []
    for matrix in matrices:
        dropped = matrix.numel() - max(1, round(density * matrix.numel()))
        if 0 < dropped < matrix.numel():
            magnitudes = matrix.abs()
            matrix[magnitudes < magnitudes.flatten().kthvalue(dropped + 1).values] = 0
        parts = [matrix.clamp_min(0), matrix.clamp_max(0), (matrix > 0).short(), (matrix < 0).short()]
        masses = [total.add_(part) for total, part in zip(masses, parts, strict=True)] if masses else parts
    above, below, risen, fallen = masses
    elected = (above + below).sign_()
    mean = torch.where(elected > 0, above / risen.clamp_min_(1), below / fallen.clamp_min_(1))
    return mean.mul_(elected.abs_())


def _triplets(delta: Delta, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, r), σ (r,), V (in, r) of the leading triplets, those alone whose values aren't rounding's."""
    u, sigma, v = delta.svd()
    kept = _kept(sigma) if most is None else min(most, _kept(sigma))
    return u[:, :kept], sigma[:kept], v[:, :kept]


def _kept(sigma: Tensor) -> int:
    return int((sigma > ROUNDING * sigma.max()).sum())


def _polar(columns: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (Procrustes), on the span of those given."""
    u, sigma, vt = torch.linalg.svd(columns, full_matrices=False)
    kept = int((sigma > ROUNDING).sum())
    factor: Tensor = u[:, :kept] @ vt[:kept]
    return factor


def _factors(delta: Delta) -> Pair:
    """L and R, one of them the identity for a change that isn't thin."""
    if delta.is_thin and delta.factors:
        return delta.factors
    matrix = delta.dense()
    out, into = matrix.shape
    return Pair(torch.eye(out), matrix) if out < into else Pair(matrix, torch.eye(into))


def _product(left: Tensor, right: Tensor) -> Delta:
    """L R; of no columns, a column of zeros: a change has a rank of 1 at least."""
    if left.shape[1] == 0:
        left, right = left.new_zeros(len(left), 1), right.new_zeros(1, right.shape[1])
    return Delta(Pair(left, right))
