"""Many small tensors as a few batches: what callbacks and monitors do to all changes at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_spectral.adapters.base import Change, Factors
from lit_spectral.spectra import linalg

__all__ = ["grams", "group_by_shape", "principal_shares", "singular_values", "spectral_norms", "stack_factors"]


def group_by_shape(items: Sequence[tuple[Tensor, ...]]) -> list[list[int]]:
    """Indices of the items whose tensors have the same shapes, a list for each shape."""
    groups: dict[tuple[torch.Size, ...], list[int]] = defaultdict(list)
    for index, tensors in enumerate(items):
        groups[tuple(tensor.shape for tensor in tensors)].append(index)
    return list(groups.values())


def stack_factors(group: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """(n, out, r) and (n, r, in) of factors of one shape, with the scale on the right factor."""
    rights = [
        right.detach() * (scale.detach().unsqueeze(-1) if isinstance(scale, Tensor) else scale)
        for _, scale, right, *_ in group
    ]
    return torch.stack([factors.left.detach() for factors in group]), torch.stack(rights)


@torch.no_grad()
def singular_values(changes: Sequence[Factors]) -> list[Tensor]:
    """All r singular values of each ΔW, largest first, float64."""
    found: dict[int, Tensor] = {}
    for indices in group_by_shape([(factors.left, factors.right) for factors in changes]):
        values = linalg.factor_spectrum(*stack_factors([changes[i] for i in indices])).values
        found |= dict(zip(indices, values, strict=True))
    return [found[index] for index in range(len(changes))]


@torch.no_grad()
def spectral_norms(changes: Sequence[Change], known: dict[Any, Tensor] | None = None) -> Tensor:
    """‖ΔW‖₂ of each change, which all have factors, (n,), float64, without a synchronisation.

    `known` is that of `grams`, which is filled.
    """
    parts = [change.orthogonal_parts() for change in changes]
    factors = [part for part, _ in parts if part is not None]
    found: dict[int, Tensor] = {}
    for indices in group_by_shape([(part.right[:, 0],) for part in factors]):
        group = [factors[i] for i in indices]
        scales = [
            scale if isinstance(scale, Tensor) else left.new_full(left.shape[1:], scale) for left, scale, *_ in group
        ]
        scale = torch.stack(scales)
        gram_left, gram_right = grams([part.left for part in group] + [part.right.mT for part in group], known).chunk(2)
        norms = linalg.largest_singular_value(gram_left, gram_right * scale.unsqueeze(-1) * scale.unsqueeze(-2))
        found |= dict(zip(indices, norms.unbind(), strict=True))
    result = torch.stack([found[index] for index in range(len(factors))])
    gains = [gain for _, gain in parts if gain is not None]
    if gains:
        largest = iter(torch._foreach_norm(gains, float("inf")))
        beside = [result.new_zeros(()) if gain is None else next(largest).to(result.dtype) for _, gain in parts]
        result = torch.maximum(result, torch.stack(beside))
    return result


@torch.no_grad()
def principal_shares(changes: Sequence[Change]) -> Tensor:
    """ρ_k, two-sided: ‖Uᵀ ΔW V‖_F² / ‖ΔW‖_F² of each change in its own principal basis, (n,), float32, 0 to 1.

    Args:
        changes: that have factors and a `principal_basis`. NaN for one whose ΔW is 0.
    """
    items = [(change.factors(), change.principal_basis) for change in changes]
    parts = [(factors, basis) for factors, basis in items if factors is not None and basis is not None]
    found: dict[int, Tensor] = {}
    for indices in group_by_shape([(each.left, each.right, *basis) for each, basis in parts]):
        left, right = stack_factors([parts[i][0] for i in indices])
        u, v = (torch.stack([parts[i][1][side] for i in indices]) for side in (0, 1))
        core = (u.mT @ left).double() @ (right @ v).double()
        energy = ((left.mT @ left).double() * (right @ right.mT).double()).sum((-2, -1))
        shares = (core.square().sum((-2, -1)) / energy).float()
        found |= dict(zip(indices, shares.unbind(), strict=True))
    return torch.stack([found[index] for index in range(len(parts))])


@torch.no_grad()
def grams(matrices: Sequence[Tensor], known: dict[Any, Tensor] | None = None) -> Tensor:
    """XᵀX of each X (m, r), all of one r: (n, r, r), float64.

    `known` remembers them by what memory X is, for as long as nobody writes there.
    """
    known = {} if known is None else known
    keys = [(x.data_ptr(), x.shape) for x in matrices]
    new = [x for x, key in zip(matrices, keys, strict=True) if key not in known]
    # Stacked as they lie in memory: copying them across the grain takes longer than the products.
    lying = [x if x.is_contiguous() else x.mT for x in new]
    for indices in group_by_shape([(x, y) for x, y in zip(lying, new, strict=True)]):
        stacked = torch.stack([lying[i] for i in indices]).double()
        products = stacked.mT @ stacked if new[indices[0]].is_contiguous() else stacked @ stacked.mT
        for index, product in zip(indices, products.unbind(), strict=True):
            known[new[index].data_ptr(), new[index].shape] = product
    return torch.stack([known[key] for key in keys])
