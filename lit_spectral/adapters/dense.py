"""ΔW = W − W₀ of a weight that is itself trained (full fine-tuning)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_spectral.adapters.base import Adapter
from lit_spectral.adapters.linear import is_transposed, weight_matrix

if TYPE_CHECKING:
    from lit_spectral.updates import Delta

__all__ = ["DenseAdapter", "put_changed"]


@torch.no_grad()
def put_changed(layer: nn.Module, initial: Tensor, delta: Delta) -> None:
    """Have a linear map's weight be W₀ + ΔW, in float32 and rounded once; `initial` is W₀ (out, in)."""
    changed = initial.float().cpu()
    changed = changed + delta.dense(changed)
    weight = weight_matrix(layer)  # a view of the layer's own memory
    weight.copy_(changed)


class DenseAdapter(Adapter):
    """Trains the base weight in place and remembers where it started, so that ΔW can be measured.

    W₀ is not saved: it is the backbone's, and loaded again with it.
    """

    initial_weight: Tensor

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.register_buffer("initial_weight", self.weight.detach().clone(), persistent=False)
        base_layer.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        out: Tensor = self.base_layer(x)
        return out

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """ΔW, dense, float32, (out, in)."""
        return weight_matrix(self.base_layer).float() - self._initial

    def start_at(self, delta: Delta) -> None:
        """The weight is W₀ + ΔW then; W₀ stays what ΔW is counted from."""
        put_changed(self.base_layer, self._initial, delta)

    @property
    def _initial(self) -> Tensor:
        initial = self.initial_weight.float()
        return initial.mT if is_transposed(self.base_layer) else initial

    def fold(self) -> None:
        """Nothing to do: ΔW is in the weight already."""

    def unfold(self) -> None:
        """Nothing to do."""
