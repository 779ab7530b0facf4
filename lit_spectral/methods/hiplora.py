"""HiP-LoRA and Proj-LoRA: what W₀'s principal directions may take, and what must keep out of them."""

from __future__ import annotations

from dataclasses import dataclass

from lit_spectral.adapters import LowRankAdapter, TwoChannelAdapter
from lit_spectral.errors import check_at_least, check_positive
from lit_spectral.methods.base import ScaledMethod, Site, check_fits

__all__ = ["HiPLoRA", "ProjLoRA"]


@dataclass
class ProjLoRA(ScaledMethod):
    """LoRA in the complement of W₀'s k principal directions, on both sides (HiP-LoRA's reference).

    L and R are retracted after every step, UᵀL = 0 and R V = 0, so that the forward pass is LoRA's.

    Args:
        rank: r of L R; default 16, as its paper.
        principal_rank: k, how many principal directions are kept out of; default 32, as its paper.
    """

    rank: int = 16
    principal_rank: int = 32
    input_rank: int | float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, principal_rank=self.principal_rank)

    def check(self, site: Site) -> None:
        """ValueError if rank, principal_rank and input_rank together leave no room in a matrix of this shape."""
        check_fits("rank + principal_rank =", self.rank + self.principal_rank, site)
        if count := self.counted(site):
            check_fits("rank + principal_rank + input_rank =", self.rank + self.principal_rank + count, site)

    def room(self, site: Site) -> int:
        """Of a matrix's smaller side, what rank and principal_rank leave."""
        return super().room(site) - self.principal_rank

    def build(self, site: Site) -> LowRankAdapter:
        """The adapter for one linear map."""
        adapter = LowRankAdapter(site.layer, self.rank, self.scale, self.dropout)
        u, _, v = site.triplets("top", self.principal_rank)
        adapter.confine(u, v)
        return adapter


@dataclass
class HiPLoRA(ProjLoRA):
    """ΔW = U_k diag(δ) V_kᵀ + s·L R: budgeted gains on the principal directions, LoRA in their complement.

    The paper's values of λ, of the weights' exponent, of s and of the rates are lost with its equations;
    the defaults are ours (docs/methods.md).

    Args:
        budget: λ of the penalty λ Σᵢ wᵢ δᵢ², summed over layers; 0 for the ablation without budget.
        sensitivity: the exponent in wᵢ = σᵢ^sensitivity / Σⱼ σⱼ^sensitivity; 0 weighs all alike.
        delta_lr: learning rate of δ over that of L and R. An encoder forgot by gains that learned ten
            times as fast (docs/results).
        project: whether L R keeps out of the principal directions; False for the ablation.
        input_rank: as of every low-rank method, but for L R alone: the gains answer to all inputs.
        alpha: α; None for 1.5 times the rank, so that s is 1.5.
    """

    budget: float = 1e-2
    sensitivity: float = 1.0
    delta_lr: float = 1.0
    project: bool = True
    head_lr: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(delta_lr=self.delta_lr)
        check_at_least(0, budget=self.budget, sensitivity=self.sensitivity)

    @property
    def scale(self) -> float:
        """S = α/r."""
        return 1.5 if self.alpha is None else super().scale

    def build(self, site: Site) -> TwoChannelAdapter:
        """The adapter for one linear map."""
        principal = site.triplets("top", self.principal_rank)
        if principal.sigma[0] == 0:
            raise ValueError("the weight is 0 and has no principal directions; leave it out of target_modules")
        adapter = TwoChannelAdapter(
            site.layer, principal, self.rank, self.scale, self.project, self.budget, self.sensitivity, self.dropout
        )
        adapter.lr_ratios = {"delta": self.delta_lr}
        return adapter
