"""The changes that peft's layers make, seen as this package's own: to measure, to fold, to save."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn

from lit_spectral.adapters.base import Change, Factors
from lit_spectral.adapters.linear import is_quantised, linear_shape
from lit_spectral.sharding import gathered, is_sharded

__all__ = ["PeftChange", "is_peft_layer"]


def is_peft_layer(module: nn.Module) -> bool:
    """Whether the module is one of peft's adapters on a linear map. Does not import peft."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    return peft is not None and isinstance(module, peft.BaseTunerLayer) and hasattr(module, "base_layer")


class PeftChange(Change):
    """ΔW of a layer of peft, known by what the layer does beside its base layer.

    Nothing of how a method of peft builds its change is assumed but that it is linear, up to a
    `constant` (some train a bias too), which is no part of ΔW. Plain LoRA's is known by its factors too.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.base_layer = layer.get_base_layer()
        self.out_features, self.in_features = linear_shape(self.base_layer)

    @property
    def folded(self) -> bool:  # type: ignore[override]
        """Whether peft has merged the layer."""
        return bool(self.layer.merged)

    def factors(self) -> Factors | None:
        """Plain LoRA's, of one adapter; None of other kinds (DoRA among them), and where they lie in shards."""
        from peft.tuners.lora import LoraLayer

        layer: Any = self.layer
        if not isinstance(layer, LoraLayer) or len(layer.active_adapters) != 1:
            return None
        (name,) = layer.active_adapters
        # AdaLoRA's layers are of LoRA's class, with parameters in place of maps.
        plain = name in layer.lora_A and isinstance(layer.lora_A[name], nn.Linear)
        if not plain or layer.lora_variant.get(name) is not None:
            return None
        left: Any = layer.lora_B[name].weight
        right: Any = layer.lora_A[name].weight
        if is_sharded(left) or is_sharded(right):
            return None
        return Factors(left.float(), float(layer.scaling[name]), right.float())

    def _change(self, x: Tensor) -> Tensor:
        """Rows of x (n, in) times ΔWᵀ, (n, out), float32."""
        difference = self._difference(torch.cat([x, torch.zeros_like(x[:1])]))
        return (difference[:-1] - difference[-1:]).float()

    @torch.no_grad()
    def constant(self) -> Tensor:
        """What the layer adds to every output, (out,), float32."""
        return self._difference(torch.zeros(1, self.in_features, device=self.device))[0].float()

    def _difference(self, x: Tensor) -> Tensor:
        """What the layer gives for rows of x beside its base layer, (n, out), in the layer's dtype."""
        layer = self.layer
        weight: Any = self.base_layer.weight
        dtype: torch.dtype = weight.dtype
        if is_quantised(self.base_layer) or dtype in {torch.bfloat16, torch.float16}:
            # The outputs of layer and base differ by less than these round them to.
            layer, dtype = copy.deepcopy(layer).float(), torch.float32
        if layer.merged:  # and does nothing beside its base layer
            layer = layer if layer is not self.layer else copy.deepcopy(layer)
            layer.unmerge()
        training = layer.training
        layer.eval()  # no dropout
        try:
            with torch.autocast(x.device.type, enabled=False), gathered(layer):
                rows = x.to(dtype)
                difference: Tensor = layer(rows) - layer.get_base_layer()(rows)
        finally:
            layer.train(training)
        return difference

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """ΔW, dense, float32, (out, in)."""
        return self._change(torch.eye(self.in_features, device=self.device)).mT

    @torch.no_grad()
    def times(self, vector: Tensor) -> Tensor:
        """ΔW v."""
        return self._change(vector[None])[0]

    def transposed_times(self, vector: Tensor) -> Tensor:
        """ΔWᵀ u, which is the derivative of u·ΔW v by v."""
        with torch.enable_grad():
            probe = torch.zeros(1, self.in_features, device=vector.device, requires_grad=True)
            (image,) = torch.autograd.grad(self._change(probe)[0] @ vector, probe)
        return image[0]

    def fold(self) -> None:
        """By peft's own merge."""
        self.layer.merge()

    def unfold(self) -> None:
        """By peft's own unmerge."""
        self.layer.unmerge()
