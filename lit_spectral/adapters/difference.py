"""ΔW = s·(L R − L⁰R⁰): low-rank changes that start at a part of W₀ (PiSSA, MiLoRA, SORSA)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_spectral.adapters.base import Factors
from lit_spectral.adapters.low_rank import FactoredAdapter
from lit_spectral.adapters.start import product_triplets
from lit_spectral.spectra import SingularTriplets

if TYPE_CHECKING:
    from lit_spectral.updates import Pair

__all__ = ["DifferenceAdapter", "SVDDifferenceAdapter", "StartedAdapter"]


class StartedAdapter(FactoredAdapter):
    """ΔW = s·[(L − L⁰) R + L⁰ (R − R⁰)], with L⁰ (out, r) and R⁰ (r, in) frozen.

    The papers subtract L⁰R⁰ from W₀. Kept as a difference, W₀ stays as it is, ΔW is exactly 0 at
    the start, and nothing cancels in bfloat16: both differences are taken in float32. As factors it
    has rank 2r.
    """

    left_start: Tensor
    right_start: Tensor

    def __init__(self, base_layer: nn.Module, scale: float, dropout: float) -> None:
        super().__init__(base_layer, dropout)
        self.scale = scale

    @abstractmethod
    def current(self) -> tuple[Tensor, Tensor]:
        """L and R as they are now."""

    def remember_start(self) -> None:
        """Freeze the present L and R as L⁰ and R⁰. They are saved: an SVD's signs don't reproduce."""
        left, right = self.current()
        self.register_buffer("left_start", left.detach().clone())
        self.register_buffer("right_start", right.detach().clone())

    def ignore_inputs(self, directions: Tensor) -> None:
        """ValueError: R, in which the start lies, answers to all inputs, and only the difference is trained."""
        raise ValueError("input_rank is not for methods that start at a part of W₀; set input_rank: 0")

    def avoid(self, u: Tensor, v: Tensor) -> None:
        """ValueError: the start lies everywhere, and only the difference from it is trained."""
        raise ValueError("methods that start at a part of W₀ can't keep out of others; give LoRA, FCLoRA or ProjLoRA")

    @torch.no_grad()
    def _begin_at(self, given: SingularTriplets, factors: Pair | None) -> None:
        """L and R with s·L R = ΔW + s·L⁰R⁰, L as near to L⁰ as can be, so that the differences stay small."""
        start, rank = self.left_start.double().cpu(), self.left_start.shape[1]
        left = torch.cat([given.u * given.sigma, start * self.scale], dim=1)
        u, sigma, v = product_triplets(left, torch.cat([given.v, self.right_start.double().cpu().mT], dim=1))
        corner = u.mT @ start
        if len(sigma) != rank or not torch.linalg.cond(corner) < 1e4:
            raise ValueError(
                f"it begins at a part of W₀ of rank {rank}, which together with the change has rank {len(sigma)}: only "
                "one that the same method made can be gone on with; give LoRA"
            )
        self._put(u @ corner, torch.linalg.solve(corner, (sigma / self.scale).unsqueeze(1) * v.mT))

    @abstractmethod
    def _put(self, left: Tensor, right: Tensor) -> None:
        """Have L and R be these, float64 on the CPU."""

    def free_factors(self) -> None:
        """None: the nearest ΔW in the ball is no difference of the form L R − L⁰R⁰."""
        return

    def factors(self) -> Factors:
        """([L − L⁰, L⁰], s, [R; R − R⁰])."""
        left, right = self.current()
        wide = torch.cat([left - self.left_start, self.left_start], dim=1)
        return Factors(wide, self.scale, torch.cat([right, right - self.right_start]), columns=left.shape[1])


class DifferenceAdapter(StartedAdapter):
    """L and R are trained; they start at √(Σ/s) times the given singular vectors, so that s·L⁰R⁰ is that part of W₀."""

    def __init__(self, base_layer: nn.Module, triplets: SingularTriplets, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base_layer, scale, dropout)
        device = self.weight.device
        root = (triplets.sigma / scale).sqrt()
        self.left = nn.Parameter((triplets.u * root).to(device, torch.float32))
        self.right = nn.Parameter((triplets.v * root).mT.contiguous().to(device, torch.float32))
        self.remember_start()

    def current(self) -> tuple[Tensor, Tensor]:
        """(L, R)."""
        return self.left, self.right

    def _put(self, left: Tensor, right: Tensor) -> None:
        self.left.copy_(left)
        self.right.copy_(right)

    def retreat(self, fraction: float) -> None:
        """L and R towards L⁰ and R⁰."""
        torch.lerp(self.left_start, self.left, fraction, out=self.left.detach())
        torch.lerp(self.right_start, self.right, fraction, out=self.right.detach())


class SVDDifferenceAdapter(StartedAdapter):
    """U, σ and V are trained, L = U diag(σ) and R = Vᵀ; they start at the given singular triplets."""

    def __init__(
        self, base_layer: nn.Module, triplets: SingularTriplets, penalty_weight: float, dropout: float = 0.0
    ) -> None:
        super().__init__(base_layer, 1.0, dropout)
        device = self.weight.device
        self.u = nn.Parameter(triplets.u.to(device, torch.float32))
        self.sigma = nn.Parameter(triplets.sigma.to(device, torch.float32))
        self.v = nn.Parameter(triplets.v.to(device, torch.float32))
        self.orthonormal = [self.u, self.v]
        self.penalty_weight = penalty_weight
        self.remember_start()

    def current(self) -> tuple[Tensor, Tensor]:
        """(U diag(σ), Vᵀ)."""
        return self.u * self.sigma, self.v.mT

    def _put(self, left: Tensor, right: Tensor) -> None:
        sigma = left.norm(dim=0)
        self.u.copy_(left / sigma)
        self.sigma.copy_(sigma)
        self.v.copy_(right.mT)

    def retreat(self, fraction: float) -> None:
        """U, σ and V towards their start, which lies in L⁰ = U⁰ diag(σ⁰)."""
        sigma = torch.linalg.vector_norm(self.left_start, dim=0)
        torch.lerp(self.left_start / sigma.clamp_min(1e-30), self.u, fraction, out=self.u.detach())
        torch.lerp(sigma, self.sigma, fraction, out=self.sigma.detach())
        torch.lerp(self.right_start.mT, self.v, fraction, out=self.v.detach())
