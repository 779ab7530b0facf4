"""ΔW = U_k diag(δ) V_kᵀ + s·L R: gains on W₀'s principal directions beside a low-rank change (HiP-LoRA)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_spectral.adapters.base import Bounded, Budget, Factors
from lit_spectral.adapters.low_rank import LowRankAdapter
from lit_spectral.adapters.start import check_ball, check_outside, largest, product_triplets, put_product, triplets_of
from lit_spectral.spectra import SingularTriplets

if TYPE_CHECKING:
    from lit_spectral.updates import Delta

__all__ = ["TwoChannelAdapter"]


class TwoChannelAdapter(LowRankAdapter):
    """ΔW = U_k diag(δ) V_kᵀ + s·L R with δ (k,) = 0 and L = 0 at the start.

    Args:
        base_layer: the linear map to adapt.
        principal: the k largest singular triplets of W₀, whose U_k and V_k stay fixed.
        rank: of the residual channel L R.
        scale: s.
        project: whether L R is confined to the complement of U_k and V_k on both sides.
        budget_weight: λ, the factor of the budget Σᵢ wᵢ δᵢ²; 0 for none.
        sensitivity: α in wᵢ = σᵢ^α / Σⱼ σⱼ^α.
        dropout: probability, on the adapter's input.
    """

    budget_weights: Tensor

    def __init__(
        self,
        base_layer: nn.Module,
        principal: SingularTriplets,
        rank: int,
        scale: float,
        project: bool,
        budget_weight: float,
        sensitivity: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(base_layer, rank, scale, dropout)
        device = self.weight.device
        self.confine(principal.u, principal.v)
        self._is_confined = project
        self.delta = nn.Parameter(torch.zeros(len(principal.sigma), device=device))
        self.budget_weight = budget_weight
        # Over the largest value, so that no power overflows; softmax of α·log σ would be the same.
        powers = (principal.sigma / principal.sigma.max()) ** sensitivity
        self.register_buffer("budget_weights", (powers / powers.sum()).to(device, torch.float32), persistent=False)

    def factors(self) -> Factors:
        """([L, U_k], [s…, δ], [R; V_kᵀ])."""
        rank = self.left.shape[1]
        scale = torch.cat([self.delta.new_full((rank,), self.scale), self.delta])
        left = torch.cat([self.left, self.u_basis], dim=1)
        return Factors(left, scale, torch.cat([self.right, self.v_basis.mT]), columns=rank, rows=rank)

    def free_factors(self) -> Factors | None:
        """(L, s, R) while the channels are orthogonal: then ‖ΔW‖₂ is the larger of max |δ| and ‖s·L R‖₂."""
        return Factors(self.left, self.scale, self.right) if self._is_confined else None

    def orthogonal_parts(self) -> tuple[Factors | None, Tensor | None]:
        """(L, s, R) and δ while the channels are orthogonal."""
        return (self.free_factors(), self.delta) if self._is_confined else super().orthogonal_parts()

    def retreat(self, fraction: float) -> None:
        """Scale δ and L, in both of which ΔW is linear."""
        self.delta.mul_(fraction)
        self.left.mul_(fraction)

    def hold_in_ball(self, radius: float) -> None:
        """Declare ‖ΔW‖₂ ≤ radius; for the principal channel that is |δ| ≤ radius."""
        super().hold_in_ball(radius)
        if self._is_confined:
            self.bounded = [Bounded(self.delta, radius, -radius)]

    @property
    def budget(self) -> Budget | None:
        """λ Σᵢ wᵢ δᵢ² (HiP-LoRA's stability budget)."""
        return Budget(self.delta, self.budget_weights, self.budget_weight) if self.budget_weight else None

    def avoid(self, u: Tensor, v: Tensor) -> None:
        """ValueError: gains act on directions that are fixed, whatever else lies in them."""
        raise ValueError("gains on W₀'s principal directions can't keep out of others; give ProjLoRA, or LoRA")

    @torch.no_grad()
    def start_at(self, delta: Delta) -> None:
        """As of any adapter: δ is the diagonal of U_kᵀ ΔW V_k, and L R the rest, which must lie outside.

        Where channels aren't orthogonal all is L R's.
        """
        if not self._is_confined:
            super().start_at(delta)
            return
        given = triplets_of(delta, self.base_layer)
        u, v = self.u_basis.double().cpu(), self.v_basis.double().cpu()
        left = given.u * given.sigma
        gains = ((u.mT @ left) * (v.mT @ given.v)).sum(1)
        check_ball(self, given)
        rest = product_triplets(torch.cat([left, -u * gains], dim=1), torch.cat([given.v, v], dim=1), largest(given))
        check_outside(self, rest, float(given.sigma.norm()))
        put_product(self.left, self.right, rest, scale=self.scale)
        self.delta.copy_(gains)
