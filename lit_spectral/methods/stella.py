"""StelLA: ΔW = s·U S Vᵀ, U and V on Stiefel manifolds."""

from __future__ import annotations

from dataclasses import dataclass

from lit_spectral.adapters import StiefelAdapter
from lit_spectral.methods.base import ScaledMethod, Site

__all__ = ["StelLA"]


@dataclass
class StelLA(ScaledMethod):
    """ΔW = s·U S Vᵀ, U and V exactly orthonormal, S dense (StelLA; Li et al., 2025).

    Gradients of U and V are Riemannian ones, and both are retracted by their polar factors after every step, whatever
    the optimizer. U and V are drawn at random. What differs from the paper: S starts at 0, not at I, so that the model
    starts as its backbone; steps are not scaled by a layer's width (docs/methods.md).

    Args:
        ball: as of every low-rank method; it is ‖S‖₂ that is bounded by it, exactly.
    """

    def build(self, site: Site) -> StiefelAdapter:
        """The adapter for one linear map."""
        return StiefelAdapter(site.layer, self.rank, self.scale, self.dropout)
