"""HiRA, its other references, and its hybrid with LoRA: ΔW = R₀ ⊙ (L R)."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor, nn

from lit_spectral.adapters import HadamardAdapter, HadamardLowRankAdapter, adapters
from lit_spectral.adapters.linear import is_quantised, linear_shape, weight_matrix
from lit_spectral.errors import InputError, check_at_least, check_positive
from lit_spectral.methods.base import RankMethod, Site, check_fits
from lit_spectral.sharding import whole

__all__ = ["HiRA", "HiRALoRA"]


log = logging.getLogger(__name__)


@dataclass
class _HadamardMethod(RankMethod):
    def apply(self, model: nn.Module, encoder: nn.Module) -> nn.Module:
        """As any method, and say what W₀ is where the backbone has none in floats."""
        adapted = super().apply(model, encoder)
        if any(is_quantised(adapter.base_layer) for adapter in adapters(adapted)):
            log.info("%s multiplies with the values that the quantised weights stand for", type(self).__name__)
        return adapted


@dataclass
class HiRA(_HadamardMethod):
    """ΔW = R₀ ⊙ (L R), with R₀ = W₀ (HiRA eq. 6): as few parameters as LoRA, and a rank up to rank(W₀)·r.

    Args:
        reference: R₀: `weight` is W₀; the others are its paper's ablations. `uniform`: drawn from
            [0, 1] by `seed` (Table 4). `truncated`: the part of W₀ of rank `reference_rank`
            (Table 13). `neighbours`: the mean of this map's W₀ in the layer below, this one and the
            layer above (Table 14).
        reference_rank: of the `truncated` reference.
    """

    defines_change = ("reference", "reference_rank", "seed")

    reference: Literal["weight", "uniform", "truncated", "neighbours"] = "weight"
    reference_rank: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.reference == "truncated") != (self.reference_rank is not None):
            raise InputError("reference: truncated and reference_rank belong together; give both or neither")
        check_at_least(1, reference_rank=self.reference_rank)

    def check(self, site: Site) -> None:
        """ValueError if a rank is above what a matrix of this shape can have."""
        super().check(site)
        if self.reference_rank is not None:
            check_fits("reference_rank", self.reference_rank, site)

    def build(self, site: Site) -> HadamardAdapter:
        """The adapter for one linear map."""
        return HadamardAdapter(site.layer, self.rank, self.dropout, self._reference(site))

    def _reference(self, site: Site) -> Tensor | None:
        """R₀ (out, in); None for W₀ itself, which need not be stored twice."""
        if self.reference == "uniform":
            # Every map draws its own, on the CPU, the same on every machine; of a seed the generator takes 32 bits.
            digest = blake2b(f"{self.seed}/{site.name}".encode(), digest_size=4).digest()
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))
            return torch.rand(linear_shape(site.layer), generator=generator, device="cpu")
        if self.reference == "truncated":
            assert self.reference_rank is not None
            u, sigma, v = site.triplets("top", self.reference_rank)
            return (u * sigma) @ v.mT
        if self.reference == "neighbours":
            return torch.stack([whole(weight).float() for weight in _neighbours(site)]).mean(0)
        return None


def _neighbours(site: Site) -> list[Tensor]:
    """Weights of the same map in the layer below, this one and the layer above, where there is one."""
    number = re.search(r"(?<=\.)\d+(?=\.)", f".{site.name}")
    if number is None:
        raise ValueError("reference: neighbours needs numbered layers, and this path has no number")
    before, after = site.name[: number.start() - 1], site.name[number.end() - 1 :]
    modules = dict(site.encoder.named_modules())
    names = [f"{before}{int(number[0]) + step}{after}" for step in (-1, 0, 1)]
    weights = [weight_matrix(modules[name]) for name in names if name in modules]
    if any(weight.shape != linear_shape(site.layer) for weight in weights):
        raise ValueError("reference: neighbours needs layers of one shape, and those beside this one have another")
    return weights


@dataclass
class HiRALoRA(_HadamardMethod):
    """ΔW = W₀ ⊙ (L R) + s·L₂ R₂: HiRA beside LoRA (HiRA §6.6, which calls it HiLoRA).

    Args:
        rank: r₁ of L R.
        lora_rank: r₂ of L₂ R₂. With r₁ + r₂ = 32, 20 and 12 were its paper's best (Table 6).
        alpha: α of the LoRA part, s = α/r₂; None for r₂.
    """

    defines_change = ("alpha",)

    lora_rank: int = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, lora_rank=self.lora_rank)
        check_positive(alpha=self.alpha)

    def check(self, site: Site) -> None:
        """ValueError if a rank is above what a matrix of this shape can have."""
        super().check(site)
        check_fits("lora_rank", self.lora_rank, site)

    def build(self, site: Site) -> HadamardLowRankAdapter:
        """The adapter for one linear map."""
        scale = 1.0 if self.alpha is None else self.alpha / self.lora_rank
        return HadamardLowRankAdapter(site.layer, self.rank, self.lora_rank, scale, self.dropout)
