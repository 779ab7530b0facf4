"""ΔW = P_out M P_in with a square M between fixed maps (MoRA, rotation variant)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral.adapters.base import Adapter

__all__ = ["SquareAdapter", "square_side"]


def square_side(out_features: int, in_features: int, rank: int) -> int:
    """Side of an M with about as many entries as LoRA's factors of that rank: ⌊√((in + out)·r)⌋ (MoRA §4)."""
    return math.isqrt((in_features + out_features) * rank)


class SquareAdapter(Adapter):
    """M (side, side) acts on pieces of the input, each rotated by its position (MoRA §4.2; Jiang et al., 2024).

    The input is cut into ⌈in/side⌉ pieces of `side` entries, the last one filled up from the front.
    Piece j is rotated as rotary embeddings rotate position j, M is applied to each, and the results
    are laid one after another, repeated if that is too short, and cut to `out`. M starts at 0.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, base_layer: nn.Module, rank: int, dropout: float = 0.0) -> None:
        super().__init__(base_layer)
        self.dropout = dropout
        side = square_side(self.out_features, self.in_features, rank)
        device = self.weight.device
        self.square = nn.Parameter(torch.zeros(side, side, device=device))
        pieces = -(-self.in_features // side)
        half = side // 2
        # A side that is odd leaves its last entry unturned.
        rates = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=device) / max(half, 1))
        angles = torch.arange(pieces, dtype=torch.float64, device=device)[:, None] * rates
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        base: Tensor = self.base_layer(x)
        if self.folded:
            return base
        return base + self._change(F.dropout(x, self.dropout, self.training).to(base.dtype))

    def _change(self, x: Tensor) -> Tensor:
        pieces, side = len(self.cosine), len(self.square)
        filled = torch.cat([x, x[..., : pieces * side - self.in_features]], dim=-1)
        sizes = [side // 2, side // 2, side % 2]
        first, second, rest = torch.split(filled.view(*x.shape[:-1], pieces, side), sizes, dim=-1)
        cosine, sine = self.cosine.to(x.dtype), self.sine.to(x.dtype)
        turned = torch.cat([first * cosine - second * sine, first * sine + second * cosine, rest], dim=-1)
        wide = F.linear(turned, self.square.to(x.dtype)).flatten(-2)
        repeats = -(-self.out_features // wide.shape[-1])
        return torch.cat([wide] * repeats, dim=-1)[..., : self.out_features]

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """ΔW, dense, float32, (out, in)."""
        return self._change(torch.eye(self.in_features, device=self.device)).mT

    @torch.no_grad()
    def times(self, vector: Tensor) -> Tensor:
        """ΔW v."""
        return self._change(vector)

    def transposed_times(self, vector: Tensor) -> Tensor:
        """ΔWᵀ u, which is the derivative of u·ΔW v by v."""
        with torch.enable_grad():
            probe = torch.zeros(self.in_features, device=vector.device, requires_grad=True)
            (image,) = torch.autograd.grad(self._change(probe) @ vector, probe)
        return image
