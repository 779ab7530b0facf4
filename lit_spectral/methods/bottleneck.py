"""Bottleneck adapters, which the papers' tables compare with: not linear, and without a ΔW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lit_spectral.adapters import BottleneckAdapter, attach, find_block_ends, find_targets
from lit_spectral.adapters.bottleneck import Activation
from lit_spectral.errors import InputError, check_at_least
from lit_spectral.methods.base import Method
from lit_spectral.reading import Reading

__all__ = ["Houlsby", "Parallel", "Pfeiffer", "Series"]


@dataclass
class _Bottlenecks(Method):
    """What methods have that put a small non-linear map behind linear maps, or beside them.

    Args:
        target_modules: as of any method; None for the method's own places.
        width: of the bottleneck.
        activation: between the map down and the map up.
        dropout: probability with which inputs of the adapter are dropped while training.
    """

    defines_change = ("activation",)

    parallel: ClassVar[bool] = False

    width: int = 64
    activation: Activation = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_from is not None:
            raise InputError("start_from: bottleneck adapters have no ΔW that could begin at a given one; give LoRA")
        check_at_least(1, width=self.width)
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout must be in [0, 1), not {self.dropout}")

    def apply(self, model: nn.Module, encoder: nn.Module) -> nn.Module:
        """Freeze the model and put bottlenecks on its encoder; InputError where there is no place for them."""
        model.requires_grad_(False)
        reading = Reading(encoder)
        targets = find_targets(encoder, self.target_modules or self._places(encoder, reading), reading)
        attach(
            encoder,
            {
                name: BottleneckAdapter(layer, self.width, self.activation, self.parallel, self.dropout)
                for name, layer in targets.items()
            },
        )
        return model

    def _places(self, encoder: nn.Module, reading: Reading) -> list[str] | None:
        """Paths of the maps that get one; None for the default of all methods."""
        return None


@dataclass
class Houlsby(_Bottlenecks):
    """Bottlenecks behind attention and feed-forward parts, before the residual sum (Houlsby et al., 2019).

    The paper trains the norms too; here they stay as they are.
    """

    activation: Activation = "gelu"

    def _places(self, encoder: nn.Module, reading: Reading) -> list[str]:
        attention, others = find_block_ends(encoder, reading)
        return _some([*attention, *others])


@dataclass
class Pfeiffer(_Bottlenecks):
    """Bottlenecks behind feed-forward parts alone, before the residual sum (Pfeiffer et al., 2021)."""

    def _places(self, encoder: nn.Module, reading: Reading) -> list[str]:
        return _some(find_block_ends(encoder, reading)[1])


@dataclass
class Series(_Bottlenecks):
    """Bottlenecks behind linear maps, reading what these give (LLM-Adapters; Hu et al., 2023)."""

    activation: Activation = "tanh"


@dataclass
class Parallel(_Bottlenecks):
    """Bottlenecks beside linear maps, reading what these read (LLM-Adapters; Hu et al., 2023)."""

    parallel: ClassVar[bool] = True

    activation: Activation = "tanh"


def _some(paths: list[str]) -> list[str]:
    if not paths:
        raise InputError("no linear map here ends a block's part; name maps in --model.method.target_modules")
    return paths
