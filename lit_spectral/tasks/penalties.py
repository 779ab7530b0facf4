"""The penalties that adapters declare, batched over adapters; nothing of them touches the loss.

Orthogonality (FCLoRA, HiLoRA): R(U, V) = ‖UᵀU − I‖_F + ‖VᵀV − I‖_F, times γ, summed over the
adapted matrices (FCLoRA eq. 11). Budget (HiP-LoRA): λ Σᵢ wᵢ δᵢ², summed likewise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from lit_spectral.adapters import Adapter
from lit_spectral.spectra import linalg

__all__ = [
    "add_budget_gradients",
    "add_gradients_of",
    "add_orthogonality_gradients",
    "budget_penalty",
    "pull_to_orthogonality",
]

# Ours, by experiment (docs/fclora_recipe.md): what a gradient of γ is worth beside one that Adam has normalised.
DECOUPLED_SCALE = 1000.0


@torch.no_grad()
def add_orthogonality_gradients(penalised: list[Adapter]) -> Tensor:
    """Add γ·∂R to the gradients of the declared tensors, as the papers write it; returns γ·ΣR, 0-d."""
    values = []
    for weight, tensors, stacked in _batches(penalised):
        gradient, errors = linalg.orthogonality_gradient(stacked)
        values.append(weight * errors.sum())
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        if len(gradients) == len(tensors):
            torch._foreach_add_(gradients, list(gradient.unbind()), alpha=weight)
    return torch.stack(values).sum()


@torch.no_grad()
def pull_to_orthogonality(penalised: list[Adapter], lr: float) -> Tensor:
    """Step on R outside the optimizer, as AdamW does with weight decay, by lr·γ·`DECOUPLED_SCALE`.

    It moves a tensor no further than Adam itself, whose steps are of the size of lr in every entry.
    Returns γ·ΣR before it, 0-d.
    """
    values = []
    for weight, tensors, stacked in _batches(penalised):
        longest = lr * stacked[0].numel() ** 0.5
        pulled, errors = linalg.orthogonality_pull(stacked, lr * weight * DECOUPLED_SCALE, longest)
        values.append(weight * errors.sum())
        torch._foreach_copy_(tensors, list(pulled.unbind()))
    return torch.stack(values).sum()


@torch.no_grad()
def budget_penalty(budgeted: list[Adapter]) -> Tensor:
    """λ Σᵢ wᵢ δᵢ² over all adapters, a 0-d tensor."""
    budgets = [budget for adapter in budgeted if (budget := adapter.budget) is not None]
    squares = torch._foreach_pow([b.tensor for b in budgets], 2)
    torch._foreach_mul_(squares, [b.weights for b in budgets])
    torch._foreach_mul_(squares, [b.factor for b in budgets])
    return torch.cat(squares).sum()


@torch.no_grad()
def add_budget_gradients(budgeted: list[Adapter]) -> None:
    """Add 2λ wᵢ δᵢ to the gradients of δ."""
    budgets = [budget for adapter in budgeted if (budget := adapter.budget) is not None]
    slopes = torch._foreach_mul([b.tensor for b in budgets], [b.weights for b in budgets])
    torch._foreach_mul_(slopes, [2 * b.factor for b in budgets])
    for budget, slope in zip(budgets, slopes, strict=True):
        if budget.tensor.grad is not None:
            budget.tensor.grad += slope


def add_gradients_of(penalty: Tensor, parameters: list[Tensor]) -> None:
    """Add autograd's gradients of any penalty, past the hooks by which DDP waits for a backward pass."""
    gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and parameter.grad is not None:
            parameter.grad += gradient


def _batches(penalised: list[Adapter]) -> Iterator[tuple[float, list[Tensor], Tensor]]:
    """(γ, tensors, the same stacked) for each shape."""
    by_shape: dict[tuple[torch.Size, float], list[Tensor]] = defaultdict(list)
    for adapter in penalised:
        for tensor in adapter.orthonormal:
            by_shape[tensor.shape, adapter.penalty_weight].append(tensor)
    for (_, weight), tensors in by_shape.items():
        yield weight, tensors, torch.stack(tensors)
