"""Methods that start at singular components of W₀: PiSSA, MiLoRA, their random control, SORSA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lit_spectral.adapters import DifferenceAdapter, SVDDifferenceAdapter
from lit_spectral.errors import check_at_least
from lit_spectral.methods.base import LowRankMethod, ScaledMethod, Site
from lit_spectral.spectra import Part

__all__ = ["SORSA", "MiLoRA", "PiSSA", "RandomSVDLoRA"]


@dataclass
class PiSSA(ScaledMethod):
    """LoRA that starts at the r largest singular components of W₀ (Meng et al., 2024).

    ΔW = s·(L R − L⁰R⁰), L⁰ = U √(Σ/s), R⁰ = √(Σ/s) Vᵀ.
    """

    part: ClassVar[Part] = "top"

    def build(self, site: Site) -> DifferenceAdapter:
        """The adapter for one linear map."""
        triplets = site.triplets(self.part, self.rank, self.seed)
        return DifferenceAdapter(site.layer, triplets, self.scale, self.dropout)


@dataclass
class MiLoRA(PiSSA):
    """The same at the r smallest components (MiLoRA §3.2): what W₀ uses least is changed first."""

    part: ClassVar[Part] = "bottom"


@dataclass
class RandomSVDLoRA(PiSSA):
    """The same at r random components (control of MiLoRA Table 4), drawn by `seed`."""

    part: ClassVar[Part] = "random"


@dataclass
class SORSA(LowRankMethod):
    """U diag(σ) Vᵀ from the r largest components, U and V pulled towards orthonormal columns (Cao, 2024).

    ΔW is the difference from the start; σ is free.

    Args:
        gamma: factor of the orthogonality penalty, which acts beside the optimizer as FCLoRA's.
    """

    gamma: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, gamma=self.gamma)

    def build(self, site: Site) -> SVDDifferenceAdapter:
        """The adapter for one linear map."""
        return SVDDifferenceAdapter(site.layer, site.triplets("top", self.rank), self.gamma, self.dropout)
