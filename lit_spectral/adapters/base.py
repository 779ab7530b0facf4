"""What every adapter is: a frozen linear map plus a change ΔW, and a declaration of its constraints."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_spectral.adapters.linear import is_transposed, linear_shape

__all__ = ["Adapter", "Bounded", "Factors"]


class Factors(NamedTuple):
    """ΔW = left @ diag(scale) @ right, with left (out, r), scale (r,) or a number, right (r, in)."""

    left: Tensor
    scale: Tensor | float
    right: Tensor


class Bounded(NamedTuple):
    """A tensor whose entries must stay in [0, upper]."""

    tensor: Tensor
    upper: float


class Adapter(nn.Module):
    """A linear map W₀ with a trainable change: y = (W₀ + ΔW) x + b.

    An adapter declares what must hold; callbacks act on the declarations of all adapters at once:

    Attributes:
        base_layer: the frozen `nn.Linear` or Conv1D that is adapted; its weight is written to by `fold` only.
        bounded: tensors that `SigmaClamp` keeps in a range.
        ball_radius: bound on ‖ΔW‖₂ that `SpectralBall` enforces by contracting the left factor, which
            must be a parameter then; None for none.
        orthonormal: tensors (m, r) whose columns the penalty pulls towards orthonormality.
        penalty_weight: γ, the penalty's factor.
        decoupled_penalty: whether the penalty acts beside the optimizer instead of in the gradient.
        lr_ratios: learning rate of a parameter of this module over the task's, by its name here.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        base_layer.requires_grad_(False)
        self.out_features, self.in_features = linear_shape(base_layer)
        self.bounded: list[Bounded] = []
        self.ball_radius: float | None = None
        self.orthonormal: list[Tensor] = []
        self.penalty_weight = 0.0
        self.decoupled_penalty = True
        self.lr_ratios: dict[str, float] = {}
        self._unfolded_weight: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The base layer's weight as it lies: some models read their submodules' `weight.dtype`."""
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base_layer.bias  # type: ignore[return-value]

    @abstractmethod
    def delta_weight(self) -> Tensor:
        """ΔW, dense, float32, (out, in); for folding and tests, not for the training path."""

    def factors(self) -> Factors | None:
        """ΔW as factors of float32, or None where it is not of low rank."""
        return None

    @property
    def folded(self) -> bool:
        """Whether ΔW is in the base weight now, so that `forward` is the base layer alone."""
        return self._unfolded_weight is not None

    @torch.no_grad()
    def fold(self) -> None:
        """Add ΔW to the base weight, in float32; W₀ is kept, for `unfold` to bring back bit by bit."""
        if self.folded:
            return
        weight = self.weight
        delta = self.delta_weight()
        delta = delta.mT if is_transposed(self.base_layer) else delta
        self._unfolded_weight = weight.detach().clone()
        weight.copy_(weight.float() + delta.to(weight.device))

    @torch.no_grad()
    def unfold(self) -> None:
        """Put W₀ back."""
        if self._unfolded_weight is not None:
            self.weight.copy_(self._unfolded_weight)
            self._unfolded_weight = None
