"""ΔW = s·U S Vᵀ, U and V exactly orthonormal: what it does is in S, where in U and V (StelLA, EBLoRA)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_spectral.adapters.base import Factors
from lit_spectral.adapters.low_rank import FactoredAdapter
from lit_spectral.adapters.start import SLACK, check_rank
from lit_spectral.spectra import SingularTriplets

if TYPE_CHECKING:
    from lit_spectral.updates import Pair

__all__ = ["EqualGainAdapter", "StiefelAdapter"]


class _OnStiefel(torch.autograd.Function):
    """X (m, r) of orthonormal columns as it is; its gradient G becomes the Riemannian one, G − X Gᵀ X.

    That of the canonical metric, which is linear in G, so that parts of a batch may be summed.
    """

    @staticmethod
    def forward(ctx: Any, columns: Tensor) -> Tensor:
        ctx.save_for_backward(columns)
        return columns.view_as(columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (columns,), (gradient,) = ctx.saved_tensors, gradients
        riemannian: Tensor = gradient - columns @ (gradient.mT @ columns)
        return riemannian


class _OrthonormalAdapter(FactoredAdapter):
    """U (out, r) and V (in, r), drawn at random, and the polar factors of what an optimizer makes of them.

    Args:
        base_layer: the linear map to adapt.
        rank: r.
        scale: s.
        dropout: probability, on the adapter's input.
    """

    gain: nn.Parameter

    def __init__(self, base_layer: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base_layer, dropout)
        self.scale = scale
        device = self.weight.device
        self.u, self.v = (
            nn.Parameter(nn.init.orthogonal_(torch.empty(size, rank, device=device)))
            for size in (self.out_features, self.in_features)
        )
        self.orthonormal = [self.u, self.v]
        self.retracted = self.polar = True

    def columns(self) -> tuple[Tensor, Tensor]:
        """(U, V)."""
        return self.u, self.v

    def retreat(self, fraction: float) -> None:
        """Scale S, in which ΔW is linear."""
        self.gain.detach().mul_(fraction)

    @torch.no_grad()
    def _begin_at(self, given: SingularTriplets, factors: Pair | None) -> None:
        check_rank(given, self.u.shape[1])
        self._put_gain(given.sigma / self.scale)
        for own, columns in ((self.u, given.u), (self.v, given.v)):
            count = columns.shape[1]
            # The rest of them, at gains of 0, made orthogonal to these.
            together = torch.cat([columns, own[:, count:].double().cpu()], dim=1)
            own[:, count:] = torch.linalg.qr(together).Q[:, count:].to(own)
            own[:, :count] = columns.to(own)

    @abstractmethod
    def _put_gain(self, sigma: Tensor) -> None:
        """Have the first k singular values of S be these, (k,); ValueError where they can't."""


class StiefelAdapter(_OrthonormalAdapter):
    """ΔW = s·U S Vᵀ with a dense S (r, r) that starts at 0; ‖ΔW‖₂ = s‖S‖₂ (StelLA; Li et al., 2025)."""

    def __init__(self, base_layer: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base_layer, rank, scale, dropout)
        self.gain = nn.Parameter(torch.zeros(rank, rank, device=self.weight.device))

    def factors(self) -> Factors:
        """(U S, s, Vᵀ)."""
        return Factors(_riemannian(self.u) @ self.gain, self.scale, _riemannian(self.v).mT)

    def free_factors(self) -> Factors:
        """(S, s, I): what of ΔW may take any value, and has all of its singular values."""
        return Factors(self.gain, self.scale, torch.eye(len(self.gain), device=self.gain.device))

    def _put_gain(self, sigma: Tensor) -> None:
        self.gain.zero_().diagonal()[: len(sigma)] = sigma.to(self.gain)


class EqualGainAdapter(_OrthonormalAdapter):
    """ΔW = s·c U Vᵀ with one number c that starts at 0: all r singular values are s|c| (EBLoRA; Gu et al., 2026)."""

    def __init__(self, base_layer: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base_layer, rank, scale, dropout)
        self.gain = nn.Parameter(torch.zeros(1, device=self.weight.device))

    def factors(self) -> Factors:
        """(U, s·c…, Vᵀ)."""
        gains = (self.gain * self.scale).expand(self.u.shape[1])
        return Factors(_riemannian(self.u), gains, _riemannian(self.v).mT)

    def free_factors(self) -> None:
        """None: the nearest matrix in a ball has equal values too, which `retreat` gives it."""
        return

    def _put_gain(self, sigma: Tensor) -> None:
        rank = self.u.shape[1]
        if len(sigma) not in {0, rank} or (len(sigma) and float(sigma[0] - sigma[-1]) > SLACK * float(sigma[0])):
            raise ValueError(
                f"EBLoRA goes on with changes of {rank} equal singular values alone, or with none; give StelLA or LoRA"
            )
        self.gain.fill_(float(sigma.mean()) if len(sigma) else 0.0)


def _riemannian(columns: Tensor) -> Tensor:
    out: Tensor = _OnStiefel.apply(columns)  # type: ignore[no-untyped-call]
    return out
