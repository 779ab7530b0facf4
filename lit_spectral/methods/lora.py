"""LoRA and rsLoRA: ΔW = s·L R."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lit_spectral.adapters import Adapter, LowRankAdapter
from lit_spectral.methods.base import Bound, LowRankMethod, resolve_bound
from lit_spectral.svd_cache import SVDCache

__all__ = ["LoRA", "RsLoRA"]


@dataclass
class LoRA(LowRankMethod):
    """ΔW = (α/r) L R (Hu et al., 2021).

    Args:
        alpha: α; None for the rank, so that the scale is 1.
        ball: exact bound on ‖ΔW‖₂, held after every step by projecting ΔW; None for none. A number,
            q1 … q4 or {quantile: 0.6} of each weight's own singular values.
    """

    alpha: float | None = None
    ball: Bound | None = None

    @property
    def scale(self) -> float:
        """S = α/r."""
        return self._alpha / self.rank

    def build(self, layer: nn.Module, cache: SVDCache) -> Adapter:
        """The adapter for one linear map."""
        self.check_rank(layer)
        adapter = LowRankAdapter(layer, self.rank, self.scale, self.dropout)
        if self.ball is not None:
            adapter.ball_radius = resolve_bound(self.ball, layer, cache)
        return adapter

    @property
    def _alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)


@dataclass
class RsLoRA(LoRA):
    """ΔW = (α/√r) L R (rank-stabilised; Kalajdzievski, 2023)."""

    @property
    def scale(self) -> float:
        """S = α/√r."""
        return float(self._alpha / self.rank**0.5)
