"""The forward pass that all low-rank methods share, and ΔW = s·L R (LoRA and its kin)."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral.adapters.base import Adapter, Confined, Factors

__all__ = ["FactoredAdapter", "LowRankAdapter", "add_low_rank"]


def add_low_rank(base: Tensor, x: Tensor, factors: Factors) -> Tensor:
    """Base + (x Rᵀ) diag(s) Lᵀ, for base (…, out) and x (…, in), in base's dtype.

    Factors and input are cast to the compute dtype, which is the base output's: float32 masters
    stay float32 and nothing is cast up. The scale is applied where the tensor is r wide, and the
    second product accumulates into the base output instead of making another of that size.
    """
    dtype = base.dtype
    narrow = F.linear(x.to(dtype), factors.right.to(dtype)) * (
        factors.scale.to(dtype) if isinstance(factors.scale, Tensor) else factors.scale
    )
    rank = narrow.shape[-1]
    wide = torch.addmm(base.reshape(-1, base.shape[-1]), narrow.reshape(-1, rank), factors.left.to(dtype).mT)
    return wide.view(base.shape)


class FactoredAdapter(Adapter):
    """An adapter whose ΔW is a product of thin factors; a subclass only says which."""

    def __init__(self, base_layer: nn.Module, dropout: float) -> None:
        super().__init__(base_layer)
        self.dropout = dropout

    @abstractmethod
    def factors(self) -> Factors:
        """ΔW as (left, scale, right)."""

    def free_factors(self) -> Factors | None:
        """Factors of what `SpectralBall` may contract: `left` is a parameter and takes any value.

        None where ΔW is not free to take the contracted value, and `SpectralBall` asks for a `retreat`.
        """
        return self.factors()

    def retreat(self, fraction: float) -> None:
        """Move ΔW towards 0, along the line from where it started, to `fraction` in [0, 1] of the way; here L alone."""
        self.factors().left.detach().mul_(fraction)

    def hold_in_ball(self, radius: float) -> None:
        """Declare ‖ΔW‖₂ ≤ radius."""
        self.ball_radius = radius

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out); dropout acts on the adapter's input only, as in LoRA."""
        base: Tensor = self.base_layer(x)
        if self.folded:
            return base
        return add_low_rank(base, F.dropout(x, self.dropout, self.training), self.factors())

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """ΔW, dense, float32, (out, in)."""
        left, scale, right = self.factors()
        return (left.float() * scale) @ right.float()


class LowRankAdapter(FactoredAdapter):
    """ΔW = scale · L R with L (out, r) = 0 and R (r, in) Kaiming uniform (Hu et al., 2021)."""

    u_basis: Tensor
    v_basis: Tensor

    def __init__(self, base_layer: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base_layer, dropout)
        self.scale = scale
        device = self.weight.device
        self.left = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
        self.right = nn.Parameter(torch.empty(rank, self.in_features, device=device))
        nn.init.kaiming_uniform_(self.right, a=math.sqrt(5))
        self._is_confined = False

    def factors(self) -> Factors:
        """(L, scale, R)."""
        return Factors(self.left, self.scale, self.right)

    def confine(self, u: Tensor, v: Tensor) -> None:
        """Keep UᵀL = 0 and R V = 0, for U (out, k) and V (in, k) with orthonormal columns (HiP-LoRA App. A.2).

        U and V are saved with the adapter, since an SVD does not reproduce across machines.
        """
        device = self.weight.device
        self.register_buffer("u_basis", u.to(device, torch.float32).contiguous())
        self.register_buffer("v_basis", v.to(device, torch.float32).contiguous())
        self._is_confined = True

    @property
    def confined(self) -> list[Confined]:
        """L against U, Rᵀ against V, where `confine` was called."""
        if not self._is_confined:
            return []
        return [Confined(self.left.detach(), self.u_basis), Confined(self.right.detach().mT, self.v_basis)]
