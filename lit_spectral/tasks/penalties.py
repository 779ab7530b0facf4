"""The orthogonality penalty of FCLoRA and HiLoRA, batched over adapters; nothing of it touches the loss.

R(U, V) = ‖UᵀU − I‖_F + ‖VᵀV − I‖_F, times γ, summed over the adapted matrices (FCLoRA eq. 11).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from lit_spectral import linalg
from lit_spectral.adapters import Adapter

__all__ = ["add_orthogonality_gradients", "orthogonality_penalty", "pull_to_orthogonality"]

# Ours, by experiment (docs/fclora_recipe.md): what a gradient of γ is worth beside one that Adam has normalised.
DECOUPLED_SCALE = 1000.0


@torch.no_grad()
def orthogonality_penalty(penalised: list[Adapter]) -> Tensor:
    """γ·ΣR, a 0-d tensor."""
    parts = [weight * linalg.orthogonality_error(stacked).sum() for weight, _, stacked in _batches(penalised)]
    return torch.stack(parts).sum()


@torch.no_grad()
def add_orthogonality_gradients(penalised: list[Adapter]) -> None:
    """Add γ·∂R to the gradients of the declared tensors, as the papers write it."""
    for weight, tensors, stacked in _batches(penalised):
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        if len(gradients) == len(tensors):
            torch._foreach_add_(gradients, list(linalg.orthogonality_gradient(stacked).unbind()), alpha=weight)


@torch.no_grad()
def pull_to_orthogonality(penalised: list[Adapter], lr: float) -> None:
    """Step on R outside the optimizer, as AdamW does with weight decay, by lr·γ·`DECOUPLED_SCALE`.

    It moves a tensor no further than Adam itself, whose steps are of the size of lr in every entry.
    """
    for weight, tensors, stacked in _batches(penalised):
        longest = lr * stacked[0].numel() ** 0.5
        pulled = linalg.orthogonality_pull(stacked, lr * weight * DECOUPLED_SCALE, longest)
        torch._foreach_copy_(tensors, list(pulled.unbind()))


def _batches(penalised: list[Adapter]) -> Iterator[tuple[float, list[Tensor], Tensor]]:
    """(γ, tensors, the same stacked) for each shape."""
    by_shape: dict[tuple[torch.Size, float], list[Tensor]] = defaultdict(list)
    for adapter in penalised:
        for tensor in adapter.orthonormal:
            by_shape[tensor.shape, adapter.penalty_weight].append(tensor)
    for (_, weight), tensors in by_shape.items():
        yield weight, tensors, torch.stack([tensor.detach() for tensor in tensors])
