"""FCLoRA and HiLoRA: ΔW = U diag(σ) Vᵀ with bounded σ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lit_spectral.adapters import Adapter, SVDAdapter
from lit_spectral.adapters.linear import weight_matrix
from lit_spectral.adapters.svd import SigmaMode
from lit_spectral.methods.base import Bound, LowRankMethod, resolve_bound
from lit_spectral.svd_cache import SVDCache

__all__ = ["FCLoRA", "HiLoRA"]


@dataclass
class FCLoRA(LowRankMethod):
    sigma_bar: Bound = "q2"
    gamma: float = 0.01
    start: Literal["singular", "zero"] = "singular"
    sigma_lr: float = 50.0
    sigma: SigmaMode = "bounded"
    ball: Bound | None = None

    def build(self, layer: nn.Module, cache: SVDCache) -> Adapter:
        """The adapter for one linear map."""
        self.check_rank(layer)
        weight = weight_matrix(layer)
        sigma_bar = resolve_bound(self.sigma_bar, layer, cache)
        if self.start == "singular":
            u, v = cache.random_singular_pairs(weight, self.rank, self.seed)
            sigma = torch.zeros(self.rank)
        else:
            u = torch.zeros(weight.shape[0], self.rank)
            v = torch.randn(weight.shape[1], self.rank) / weight.shape[1] ** 0.5
            sigma = torch.full((self.rank,), sigma_bar)
        if self.sigma != "bounded":
            sigma = torch.ones(self.rank)
        adapter = SVDAdapter(layer, u, v, sigma, sigma_bar, self.sigma, self.gamma, self.dropout)
        adapter.lr_ratios = {"sigma": self.sigma_lr}
        if self.ball is not None:
            adapter.ball_radius = resolve_bound(self.ball, layer, cache)
        return adapter


@dataclass
class HiLoRA(FCLoRA):
    """HiLoRA"""
