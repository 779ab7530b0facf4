"""Methods that start at singular components of W₀: PiSSA, MiLoRA, their random control, SORSA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lit_spectral.adapters import DifferenceAdapter, SVDDifferenceAdapter
from lit_spectral.errors import check_at_least
from lit_spectral.methods.base import LowRankMethod, ScaledMethod, Site, check_fits
from lit_spectral.spectra import Part, SingularTriplets

__all__ = ["SORSA", "MiLoRA", "PiSSA", "RandomSVDLoRA"]


@dataclass
class _FromOneEnd(LowRankMethod):
    """What starts at neighbouring singular components of W₀.

    Args:
        offset: how many components of that end are passed by. Forgetting is claimed to be least somewhere between the
            ends (arXiv 2602.03493); 0, the end itself, is the papers' method.
    """

    acts_at_start = (*LowRankMethod.acts_at_start, "offset")

    part: ClassVar[Part] = "top"
    offset: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, offset=self.offset)

    def check(self, site: Site) -> None:
        """ValueError if a matrix of this shape has not so many components, with those that are passed by."""
        super().check(site)
        if self.offset:
            check_fits("rank + offset =", self.rank + self.offset, site)

    def _start(self, site: Site) -> SingularTriplets:
        u, sigma, v = site.triplets(self.part, self.rank + self.offset)
        # They fall, so that the smallest come last.
        kept = slice(self.rank) if self.part == "bottom" else slice(self.offset, None)
        return SingularTriplets(u[:, kept], sigma[kept], v[:, kept])


@dataclass
class PiSSA(_FromOneEnd, ScaledMethod):
    """LoRA that starts at the r largest singular components of W₀ (Meng et al., 2024).

    ΔW = s·(L R − L⁰R⁰), L⁰ = U √(Σ/s), R⁰ = √(Σ/s) Vᵀ.
    """

    def build(self, site: Site) -> DifferenceAdapter:
        """The adapter for one linear map."""
        return DifferenceAdapter(site.layer, self._start(site), self.scale, self.dropout)


@dataclass
class MiLoRA(PiSSA):
    """PiSSA at the r smallest components (MiLoRA §3.2): what W₀ uses least is changed first."""

    part: ClassVar[Part] = "bottom"


@dataclass
class RandomSVDLoRA(ScaledMethod):
    """PiSSA at r random components (control of MiLoRA Table 4), drawn by `seed`."""

    def build(self, site: Site) -> DifferenceAdapter:
        """The adapter for one linear map."""
        triplets = site.triplets("random", self.rank, self.seed)
        return DifferenceAdapter(site.layer, triplets, self.scale, self.dropout)


@dataclass
class SORSA(_FromOneEnd):
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
        return SVDDifferenceAdapter(site.layer, self._start(site), self.gamma, self.dropout)
