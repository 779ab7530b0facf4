"""The linear maps that can be adapted. The only place that knows that Conv1D lies transposed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["compute_dtype", "is_linear", "is_plain_and_frozen", "is_transposed", "linear_shape", "weight_matrix"]


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (in, out), as in GPT-2's `Conv1D`."""
    # By name: importing it would load the Hugging Face modelling code for every user of this package.
    return type(module).__name__ == "Conv1D"


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a plain linear map."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def weight_matrix(module: nn.Module) -> Tensor:
    """The weight as (out, in), detached, a view of the module's own memory."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return weight.mT if is_transposed(module) else weight


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(out_features, in_features)."""
    out_features, in_features = weight_matrix(module).shape
    return out_features, in_features


def is_plain_and_frozen(module: nn.Module) -> bool:
    """Whether the module computes x Wᵀ + b and nothing else, with W and b that need no gradient."""
    plain = type(module) is nn.Linear or is_transposed(module)
    return plain and not any(parameter.requires_grad for parameter in module.parameters())


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear map takes x: that of autocast where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
