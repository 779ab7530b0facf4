"""A bottleneck behind a linear map or beside it: small maps down and up with an activation between, and no ΔW."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral.adapters.base import Wrapper

__all__ = ["Activation", "BottleneckAdapter"]

Activation = Literal["relu", "gelu", "silu", "tanh"]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


class BottleneckAdapter(Wrapper):
    """y = h + U a(D z + d) + u, with h = W₀ x + b, and z = h behind the map or z = x beside it.

    D (width, in or out) is Kaiming uniform, U (out, width) and the biases start at 0, so that y = h to the bit.

    Args:
        base_layer: the linear map.
        width: of the bottleneck.
        activation: a.
        parallel: beside the map, reading what it reads; else behind it, reading what it gives.
        dropout: probability, on z.
    """

    def __init__(
        self, base_layer: nn.Module, width: int, activation: Activation, parallel: bool, dropout: float = 0.0
    ) -> None:
        super().__init__(base_layer)
        self.activation, self.parallel, self.dropout = activation, parallel, dropout
        device = self.weight.device
        # Parameters of its own, not maps in it, so that a model in bfloat16 keeps them in float32.
        self.down = nn.Parameter(torch.empty(width, self.in_features if parallel else self.out_features, device=device))
        self.down_bias = nn.Parameter(torch.zeros(width, device=device))
        self.up = nn.Parameter(torch.zeros(self.out_features, width, device=device))
        self.up_bias = nn.Parameter(torch.zeros(self.out_features, device=device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        base: Tensor = self.base_layer(x)
        dtype = base.dtype
        read = F.dropout(x if self.parallel else base, self.dropout, self.training).to(dtype)
        narrow = F.linear(read, self.down.to(dtype), self.down_bias.to(dtype))
        wide = F.linear(_FUNCTIONS[self.activation](narrow), self.up.to(dtype), self.up_bias.to(dtype))
        return base + wide.to(dtype)
