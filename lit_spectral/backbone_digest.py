"""What tells backbones apart, of a model in memory or of its files."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lit_spectral.adapters.linear import is_linear, is_quantised
from lit_spectral.sharding import whole
from lit_spectral.tensor_files import content_digest

__all__ = ["backbone_digest", "parameters_digest", "same_backbone"]

# In a digest, in place of weights that are codes.
QUANTISED = "quantised"


def backbone_digest(
    encoder: nn.Module, new: Container[int], value: Callable[[Any], Tensor] = lambda parameter: parameter
) -> str:
    """Two hashes that tell backbones apart: of what is no weight of a linear map, and of those weights.

    Where they are quantised that word stands for the second: their values depend on how.

    Args:
        encoder: the pretrained part of a model, before it is adapted.
        new: ids of parameters that its files lack.
        value: of a parameter, where it is not its own, as on the meta device.
    """
    maps = [module for module in encoder.modules() if is_linear(module)]
    weights = {id(module.weight): module.weight for module in maps if id(module.weight) not in new}
    others = [p for p in encoder.parameters() if id(p) not in weights and id(p) not in new]
    coded = any(is_quantised(module) for module in maps)
    of_maps = QUANTISED if coded else parameters_digest(value(p) for p in weights.values())
    return f"{parameters_digest(value(p) for p in others)}-{of_maps}"


def parameters_digest(parameters: Iterable[Any]) -> str:
    """A hash of all shapes, and of about 256 entries of every tensor, as bfloat16 has them."""
    sizes: list[int] = []
    entries: list[Tensor] = []
    for parameter in parameters:
        sizes += parameter.shape
        step = max(1, parameter.numel() // 256)
        # Copies: a view would keep all of a tensor that was put together of shards.
        entries.append(whole(parameter.detach()).flatten()[::step].to(torch.bfloat16, copy=True))
    return content_digest(torch.tensor(sizes), *entries)


def same_backbone(one: str, other: str) -> bool:
    """Whether two digests can be those of one backbone, which may have been quantised."""
    (others, _, maps), (other_others, _, other_maps) = one.partition("-"), other.partition("-")
    return others == other_others and (maps == other_maps or QUANTISED in {maps, other_maps})
