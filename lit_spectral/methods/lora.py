"""LoRA, rsLoRA and LoRA+: ΔW = s·L R."""

from __future__ import annotations

from dataclasses import dataclass

from lit_spectral.adapters import LowRankAdapter
from lit_spectral.errors import check_at_least
from lit_spectral.methods.base import ScaledMethod, Site

__all__ = ["LoRA", "LoRAPlus", "RsLoRA"]


@dataclass
class LoRA(ScaledMethod):
    """ΔW = (α/r) L R (Hu et al., 2021)."""

    def build(self, site: Site) -> LowRankAdapter:
        """The adapter for one linear map."""
        return LowRankAdapter(site.layer, self.rank, self.scale, self.dropout)


@dataclass
class RsLoRA(LoRA):
    """ΔW = (α/√r) L R (rank-stabilised; Kalajdzievski, 2023)."""

    @property
    def scale(self) -> float:
        """S = α/√r."""
        return super().scale * float(self.rank**0.5)


@dataclass
class LoRAPlus(LoRA):
    """LoRA whose L learns faster than R (LoRA+; Hayou et al., 2024).

    Args:
        lr_ratio: learning rate of L over that of R, at least 1; its paper recommends 16.
    """

    lr_ratio: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, lr_ratio=self.lr_ratio)

    def build(self, site: Site) -> LowRankAdapter:
        """The adapter for one linear map."""
        adapter = super().build(site)
        adapter.lr_ratios = {"left": self.lr_ratio}
        return adapter
