"""ΔW = U diag(σ) Vᵀ, the parameterised SVD of FCLoRA and HiLoRA."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lit_spectral.adapters.base import Bounded, Factors
from lit_spectral.adapters.low_rank import FactoredAdapter

__all__ = ["SVDAdapter", "SigmaMode"]

SigmaMode = Literal["bounded", "free", "fixed"]


class SVDAdapter(FactoredAdapter):
    """ΔW = U diag(σ) Vᵀ with U (out, r), σ (r,), V (in, r); σ stays in [0, σ̄] when bounded.

    Args:
        base_layer: the linear map to adapt.
        u: start of U.
        v: start of V.
        sigma: start of σ.
        sigma_bar: σ̄, the bound on σ.
        mode: `bounded` (FCLoRA eq. 10), `free` (ablation LoRA_SVD) or `fixed` (ablation LoRA_UVᵀ).
        penalty_weight: γ of the orthogonality penalty on U and V.
        dropout: probability, on the adapter's input.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        u: Tensor,
        v: Tensor,
        sigma: Tensor,
        sigma_bar: float,
        mode: SigmaMode = "bounded",
        penalty_weight: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(base_layer, dropout)
        device = self.weight.device
        self.u = nn.Parameter(u.to(device, torch.float32))
        self.v = nn.Parameter(v.to(device, torch.float32))
        self.sigma = nn.Parameter(sigma.to(device, torch.float32), requires_grad=mode != "fixed")
        self.sigma_bar = sigma_bar
        if mode == "bounded":
            self.bounded = [Bounded(self.sigma, sigma_bar)]
        self.orthonormal = [self.u, self.v]
        self.penalty_weight = penalty_weight

    def hold_in_ball(self, radius: float) -> None:
        """Declare ‖ΔW‖₂ ≤ radius: a bound on σ while U and V are exactly orthonormal."""
        if self.retracted:
            self.sigma_bar = min(self.sigma_bar, radius)
            self.bounded = [Bounded(self.sigma, self.sigma_bar)]
        else:
            super().hold_in_ball(radius)

    def factors(self) -> Factors:
        """(U, σ, Vᵀ)."""
        return Factors(self.u, self.sigma, self.v.mT)
