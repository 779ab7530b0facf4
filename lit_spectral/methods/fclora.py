"""FCLoRA and its predecessor HiLoRA: ΔW = U diag(σ) Vᵀ with bounded σ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_spectral.adapters import SVDAdapter
from lit_spectral.adapters.linear import linear_shape
from lit_spectral.adapters.svd import SigmaMode
from lit_spectral.errors import InputError, check_at_least, check_positive
from lit_spectral.methods.base import LowRankMethod, Site
from lit_spectral.methods.bounds import Bound, check_bound, read_bound
from lit_spectral.spectra import SingularTriplets

__all__ = ["FCLoRA", "HiLoRA"]


@dataclass
class FCLoRA(LowRankMethod):
    """ΔW = U diag(σ) Vᵀ, 0 ≤ σ ≤ σ̄, with U and V pulled towards orthonormal columns (FCLoRA eq. 9 to 11).

    The papers' text leaves the rate of σ and the weight of the penalty beside Adam open. Taken
    literally (`sigma_lr=1, orthogonality="gradient"`) the rows that start at singular vectors learn
    next to nothing in a few epochs; the defaults here are ours, chosen in docs/fclora_recipe.md. So are
    `principal_rank`, `input_rank`, `factor_lr` and `head_lr`, which the papers don't have (0, 0, 1 and 1 are theirs).

    Args:
        sigma_bar: σ̄: a number, q1 … q4 (quartiles of each weight's own singular values, counted
            upwards), {quantile: 0.6} of them, or what else `ball` may be.
        gamma: γ, the factor of the orthogonality penalty; 0 for none.
        start: `singular`: U and V are random singular pairs of the weight, σ = 0. `zero`: U = 0,
            V Gaussian with variance 1/in, σ = σ̄.
        sigma_lr: learning rate of σ over the task's. Adam moves σ by at most the
            learning rate a step, too little to reach σ̄ in a few epochs.
        factor_lr: learning rate of U and V over the task's.
        orthogonality: what keeps U and V orthonormal. `gradient` adds γ∂R to the gradient, as written
            in the papers. Adam then divides it by the gradient's own size, so that it drowns the task
            wherever that gradient is small, as at the start. `decoupled` steps on R beside the
            optimizer, as AdamW decays weights. `gram-schmidt` makes both exactly orthonormal after
            every step, by QR (Table 18); no penalty then.
        principal_rank: how many of W₀'s principal directions U and V keep out of, on both sides, after every
            step, as HiP-LoRA's residual does; at most a quarter of the matrix's smaller side. A small
            masked-language model forgot much less by it, a sentence encoder learned less (docs/results).
        sigma: `bounded`; `free`: σ starts at 1 without bound (ablation LoRA_SVD); `fixed`: σ stays
            at 1 (ablation LoRA_UVᵀ). The last two need `start: zero`.
    """

    defines_change = ("sigma",)
    acts_at_start = (*LowRankMethod.acts_at_start, "start")

    sigma_bar: Bound = "q2"
    gamma: float = 0.01
    start: Literal["singular", "zero"] = "singular"
    sigma_lr: float = 50.0
    factor_lr: float = 2.0
    orthogonality: Literal["decoupled", "gradient", "gram-schmidt"] = "decoupled"
    principal_rank: int = 0
    input_rank: int | float | None = None
    sigma: SigmaMode = "bounded"
    head_lr: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bound("sigma_bar", self.sigma_bar)
        check_positive(sigma_lr=self.sigma_lr, factor_lr=self.factor_lr)
        check_at_least(0, principal_rank=self.principal_rank, gamma=self.gamma)
        if self.sigma != "bounded" and self.start == "singular":
            raise InputError(f"sigma: {self.sigma} starts at 1; only start: zero leaves the model unchanged at first")
        if self.orthogonality == "gram-schmidt" and self.start == "zero":
            raise InputError("orthogonality: gram-schmidt can't hold a U that starts at 0; give start: singular")

    def build(self, site: Site) -> SVDAdapter:
        """The adapter for one linear map."""
        measure, number = read_bound(self.sigma_bar)
        if self.start == "singular" and measure == "quantile":
            site.spectra.draw(self.rank + self._kept_out_of(site), self.seed, number)
        sigma_bar = site.bound(self.sigma_bar)
        u, sigma, v = self._start(site, sigma_bar)
        adapter = SVDAdapter(site.layer, u, v, sigma, sigma_bar, self.sigma, self.gamma, self.dropout)
        if (count := self._kept_out_of(site)) > 0:
            top = site.triplets("top", count)
            adapter.confine(top.u, top.v, saved=False)
        adapter.decoupled_penalty = self.orthogonality == "decoupled"
        if self.orthogonality == "gram-schmidt":
            adapter.retracted, adapter.penalty_weight = True, 0.0
        adapter.lr_ratios = {"sigma": self.sigma_lr, "u": self.factor_lr, "v": self.factor_lr}
        return adapter

    def room(self, site: Site) -> int:
        """Of a matrix's smaller side, what the rank and principal directions leave."""
        return max(0, super().room(site) - self._principal(site))

    def _principal(self, site: Site) -> int:
        return min(self.principal_rank, min(linear_shape(site.layer)) // 4)

    def _kept_out_of(self, site: Site) -> int:
        """How many principal directions there are to keep out of, beside the rank and ignored inputs."""
        return min(self._principal(site), super().room(site) - self.ignored(site))

    def _start(self, site: Site, sigma_bar: float) -> tuple[Tensor, Tensor, Tensor]:
        """U, σ and V, such that ΔW = 0."""
        count = self._kept_out_of(site)
        if self.start == "singular":
            drawn = site.triplets("random", self.rank + count, self.seed)
            if count:
                # The first drawn that are not principal; of so many at least `rank` aren't.
                principal = drawn.sigma > site.triplets("top", count).sigma[-1] * (1 - 1e-4)
                kept = principal.int().argsort(stable=True)[: self.rank]
                drawn = SingularTriplets(drawn.u[:, kept], drawn.sigma[kept], drawn.v[:, kept])
            return drawn.u, torch.zeros(self.rank), drawn.v
        out_features, in_features = linear_shape(site.layer)
        v = torch.randn(in_features, self.rank) / in_features**0.5
        sigma = torch.full((self.rank,), sigma_bar if self.sigma == "bounded" else 1.0)
        return torch.zeros(out_features, self.rank), sigma, v


@dataclass
class HiLoRA(FCLoRA):
    """FCLoRA under its first name (HiLoRA eq. 6 to 8); its paper's rows have other σ̄ and γ."""
