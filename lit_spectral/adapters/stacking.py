"""Many small tensors as a few batches: what callbacks and monitors do to all changes at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_spectral import linalg
from lit_spectral.adapters.base import Factors

__all__ = ["group_by_shape", "singular_values", "stack_factors"]


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
