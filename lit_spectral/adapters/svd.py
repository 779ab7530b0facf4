"""ΔW = U diag(σ) Vᵀ, the parameterised SVD of FCLoRA and HiLoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from lit_spectral.adapters.base import Bounded, Factors
from lit_spectral.adapters.low_rank import FactoredAdapter
from lit_spectral.adapters.start import SLACK, check_rank
from lit_spectral.spectra import SingularTriplets
from lit_spectral.spectra.linalg import orthonormalise

if TYPE_CHECKING:
    from lit_spectral.updates import Pair

__all__ = ["SVDAdapter", "SigmaMode"]

SigmaMode = Literal["bounded", "free", "fixed"]

# A penalty keeps U and V orthonormal only roughly: how far singular values of ΔW may be above σ̄, as a part of it.
LOOSE = 0.25


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

    def retreat(self, fraction: float) -> None:
        """Scale σ, which leaves U as it is, where it is trained; else U."""
        (self.sigma if self.sigma.requires_grad else self.u).detach().mul_(fraction)

    def factors(self) -> Factors:
        """(U, σ, Vᵀ)."""
        return Factors(self.u, self.sigma, self.v.mT)

    @torch.no_grad()
    def avoid(self, u: Tensor, v: Tensor) -> None:
        """As of any product; while ΔW is 0 for want of σ, U and V are made orthonormal there.

        A pair of which little is left, as where an earlier adapter began with the same, is drawn anew.
        """
        super().avoid(u, v)
        if self.sigma.any():
            return
        sides = list(zip((self.u, self.v), self.kept_out_of(), strict=True))
        left, right = (_outside(columns.double(), bases) for columns, bases in sides)
        kept = (left.norm(dim=0) > 0.5) & (right.norm(dim=0) > 0.5)
        for (columns, bases), outside in zip(sides, (left, right), strict=True):
            drawn = _outside(torch.randn_like(outside) / len(outside) ** 0.5, bases)
            columns.copy_(orthonormalise(torch.where(kept, outside, drawn).unsqueeze(0))[0])

    @torch.no_grad()
    def _begin_at(self, given: SingularTriplets, factors: Pair | None) -> None:
        check_rank(given, len(self.sigma))
        u, sigma, v = given
        count = len(sigma)
        if not self.sigma.requires_grad:
            u, sigma = u * sigma, torch.ones_like(sigma)
        elif self.bounded:
            over = (sigma / self.sigma_bar).clamp_min(1.0)
            if count and float(over[0]) > 1 + (SLACK if self.retracted else LOOSE):
                raise ValueError(
                    f"its largest singular value {float(sigma[0]):.4g} is above σ̄ = {self.sigma_bar:.4g}; contract it "
                    "first (lit-spectral mend --ball, with the same bound), or give a larger --model.method.sigma_bar"
                )
            u, sigma = u * over, sigma / over
        starts_at_pairs = bool(self.u.any())
        for columns, unit, new in ((self.u, given.u, u), (self.v, v, v)):
            if starts_at_pairs:  # the rest of them, at σ = 0, made orthogonal to these
                together = torch.cat([unit, columns[:, count:].double().cpu()], dim=1)
                columns[:, count:] = torch.linalg.qr(together).Q[:, count:].to(columns)
            columns[:, :count] = new.to(columns)
        self.sigma[:count] = sigma.to(self.sigma)


def _outside(columns: Tensor, bases: list[Tensor]) -> Tensor:
    """Columns (m, r), float64, less their parts in orthonormal bases (m, ·) that are orthogonal to one another."""
    for basis in 2 * [each.double() for each in bases]:
        columns = columns - basis @ (basis.mT @ columns)
    return columns
