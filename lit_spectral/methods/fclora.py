"""FCLoRA and its predecessor HiLoRA: ΔW = U diag(σ) Vᵀ with bounded σ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lit_spectral.adapters import Adapter, SVDAdapter
from lit_spectral.adapters.linear import weight_matrix
from lit_spectral.adapters.svd import SigmaMode
from lit_spectral.errors import InputError
from lit_spectral.methods.base import Bound, LowRankMethod, resolve_bound
from lit_spectral.svd_cache import SVDCache

__all__ = ["FCLoRA", "HiLoRA"]


@dataclass
class FCLoRA(LowRankMethod):
    """ΔW = U diag(σ) Vᵀ, 0 ≤ σ ≤ σ̄, with U and V pulled towards orthonormal columns (FCLoRA eq. 9 to 11).

    The papers' text leaves the rate of σ and the weight of the penalty beside Adam open. Taken
    literally (`sigma_lr=1, penalty="gradient"`) the rows that start at singular vectors learn
    next to nothing in a few epochs; the defaults here are ours, chosen in docs/fclora_recipe.md.

    Args:
        sigma_bar: σ̄: a number, q1 … q4 (quartiles of each weight's own singular values, counted
            upwards) or {quantile: 0.6} of them.
        gamma: γ, the factor of the orthogonality penalty; 0 for none.
        start: `singular`: U and V are random singular pairs of the weight, σ = 0. `zero`: U = 0,
            V Gaussian with variance 1/in, σ = σ̄.
        sigma_lr: learning rate of σ over that of the other parameters. Adam moves σ by at most the
            learning rate a step, too little to reach σ̄ in a few epochs.
        penalty: `gradient` adds γ∂R to the gradient, as written in the papers. Adam then divides it
            by the gradient's own size, so that it drowns the task wherever that gradient is small,
            as at the start. `decoupled` steps on R beside the optimizer, as AdamW decays weights.
        sigma: `bounded`; `free`: σ starts at 1 without bound (ablation LoRA_SVD); `fixed`: σ stays
            at 1 (ablation LoRA_UVᵀ). The last two need `start: zero`.
        ball: exact bound on ‖ΔW‖₂ besides, in the same forms as σ̄; None for none.
    """

    sigma_bar: Bound = "q2"
    gamma: float = 0.01
    start: Literal["singular", "zero"] = "singular"
    sigma_lr: float = 50.0
    penalty: Literal["decoupled", "gradient"] = "decoupled"
    sigma: SigmaMode = "bounded"
    ball: Bound | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma < 0 or self.sigma_lr <= 0:
            raise InputError(f"gamma must not be negative and sigma_lr above 0, not {self.gamma} and {self.sigma_lr}")
        if self.sigma != "bounded" and self.start == "singular":
            raise InputError(f"sigma: {self.sigma} starts at 1; only start: zero leaves the model unchanged at first")

    def build(self, layer: nn.Module, cache: SVDCache) -> Adapter:
        """The adapter for one linear map."""
        self.check_rank(layer)
        sigma_bar = resolve_bound(self.sigma_bar, layer, cache)
        u, sigma, v = self._start(weight_matrix(layer), sigma_bar, cache)
        adapter = SVDAdapter(layer, u, v, sigma, sigma_bar, self.sigma, self.gamma, self.dropout)
        adapter.decoupled_penalty = self.penalty == "decoupled"
        adapter.lr_ratios = {"sigma": self.sigma_lr}
        if self.ball is not None:
            adapter.ball_radius = resolve_bound(self.ball, layer, cache)
        return adapter

    def _start(self, weight: Tensor, sigma_bar: float, cache: SVDCache) -> tuple[Tensor, Tensor, Tensor]:
        """U, σ and V, such that ΔW = 0."""
        if self.start == "singular":
            u, _, v = cache.singular_triplets({"": weight}, "random", self.rank, self.seed)[""]
            return u, torch.zeros(self.rank), v
        out_features, in_features = weight.shape
        v = torch.randn(in_features, self.rank) / in_features**0.5
        sigma = torch.full((self.rank,), sigma_bar if self.sigma == "bounded" else 1.0)
        return torch.zeros(out_features, self.rank), sigma, v


@dataclass
class HiLoRA(FCLoRA):
    """The same method under its first name (HiLoRA eq. 6 to 8); its paper's rows have other σ̄ and γ."""
