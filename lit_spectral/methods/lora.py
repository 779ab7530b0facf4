"""LoRA, rsLoRA and LoRA+: ΔW = s·L R."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lit_spectral.adapters import Adapter, LowRankAdapter
from lit_spectral.errors import InputError
from lit_spectral.methods.base import Bound, ScaledMethod, resolve_bound
from lit_spectral.svd_cache import SVDCache

__all__ = ["LoRA", "LoRAPlus", "RsLoRA"]


@dataclass
class LoRA(ScaledMethod):
    """ΔW = (α/r) L R (Hu et al., 2021).

    Args:
        ball: exact bound on ‖ΔW‖₂, held after every step by projecting ΔW; None for none. A number,
            q1 … q4 or {quantile: 0.6} of each weight's own singular values.
    """

    ball: Bound | None = None

    def build(self, layer: nn.Module, cache: SVDCache) -> Adapter:
        """The adapter for one linear map."""
        self.check_rank(layer)
        adapter = LowRankAdapter(layer, self.rank, self.scale, self.dropout)
        if self.ball is not None:
            adapter.ball_radius = resolve_bound(self.ball, layer, cache)
        return adapter


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
        if self.lr_ratio < 1:
            raise InputError(f"lr_ratio must be at least 1, not {self.lr_ratio}")

    def build(self, layer: nn.Module, cache: SVDCache) -> Adapter:
        """The adapter for one linear map."""
        adapter = super().build(layer, cache)
        adapter.lr_ratios = {"left": self.lr_ratio}
        return adapter
