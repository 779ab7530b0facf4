"""The baselines that train the backbone's own parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lit_spectral.adapters import DenseAdapter
from lit_spectral.adapters.linear import is_quantised
from lit_spectral.errors import InputError
from lit_spectral.methods.base import Method, Site

__all__ = ["BitFit", "FullFineTuning"]


@dataclass
class FullFineTuning(Method):
    """Every parameter of the model is trained; `target_modules` says which ΔW are measured."""

    def apply(self, model: nn.Module, encoder: nn.Module) -> nn.Module:
        """Keep a copy of the targets' weights to measure ΔW by, and unfreeze everything."""
        if any(is_quantised(module) for module in model.modules()):
            raise InputError(
                "model.quantization: full fine-tuning trains the weights themselves, and codes of 4 or 8 bits can't be "
                "trained; leave it out, or give another method"
            )
        super().apply(model, encoder)
        return model.requires_grad_(True)

    def build(self, site: Site) -> DenseAdapter:
        """The adapter for one linear map."""
        return DenseAdapter(site.layer)


@dataclass
class BitFit(Method):
    """Only the encoder's biases are trained (Ben Zaken et al., 2022); no ΔW, nothing to attach."""

    def apply(self, model: nn.Module, encoder: nn.Module) -> nn.Module:
        """Freeze all but the biases."""
        if self.target_modules is not None:
            raise InputError("BitFit trains every bias and has no target_modules; leave it out")
        model.requires_grad_(False)
        biases = [p for name, p in encoder.named_parameters() if name.endswith("bias") and "pooler" not in name]
        if not biases:
            raise InputError("BitFit: this backbone has no biases, as Llama-like decoders; choose another method")
        for bias in biases:
            bias.requires_grad_(True)
        return model
