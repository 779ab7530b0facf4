"""EBLoRA: ΔW = s·c U Vᵀ, all of whose singular values are equal."""

from __future__ import annotations

from dataclasses import dataclass

from lit_spectral.adapters import EqualGainAdapter
from lit_spectral.methods.base import ScaledMethod, Site

__all__ = ["EBLoRA"]


@dataclass
class EBLoRA(ScaledMethod):
    """ΔW = s·c U Vᵀ, U and V exactly orthonormal: r equal singular values (EBLoRA; Gu et al., 2026).

    One number c for each map says how much, U and V where; they are trained as StelLA's. Decided here, the paper being
    known by its abstract: c starts at 0, and what keeps U and V out of earlier tasks is `after` (docs/methods.md).
    """

    def build(self, site: Site) -> EqualGainAdapter:
        """The adapter for one linear map."""
        return EqualGainAdapter(site.layer, self.rank, self.scale, self.dropout)
