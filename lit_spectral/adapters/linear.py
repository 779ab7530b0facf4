"""The linear maps that can be adapted. The only place that knows that Conv1D lies transposed, and what codes mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral.reading import evaluating

__all__ = [
    "compute_dtype",
    "is_linear",
    "is_plain_and_frozen",
    "is_quantised",
    "is_transposed",
    "linear_shape",
    "resembles_linear",
    "weight_matrix",
]

# In which a weight's entries are its values; the 8-bit floats come with scales that lie elsewhere.
VALUES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (in, out), as in GPT-2's `Conv1D`."""
    # By name: importing it would load the Hugging Face modelling code for every user of this package.
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def is_quantised(module: nn.Module) -> bool:
    """Whether the module is one of bitsandbytes' linear maps, with codes of 4 or 8 bits for weights."""
    # By name: importing it would ask it of everybody.
    kinds = {kind.__name__ for kind in type(module).__mro__ if kind.__module__ == "bitsandbytes.nn.modules"}
    weight: Any = module._parameters.get("weight")
    if "Linear4bit" in kinds:
        return getattr(weight, "quant_state", None) is not None
    return "Linear8bitLt" in kinds and weight is not None and weight.dtype == torch.int8


def is_linear(module: nn.Module) -> bool:
    """Whether the module computes W x + b, W being its own parameter `weight`: by its entries, or bitsandbytes' codes.

    Other subclasses of `nn.Linear` may hold codes for weights too, or compute something else. One with a forward of
    its own is tried on a few rows.
    """
    if is_quantised(module):
        return True
    if not (isinstance(module, nn.Linear) or is_transposed(module)):
        return False
    weight = module._parameters.get("weight")  # a computed one, as of a parametrised module, is not there
    if weight is None or weight.ndim != 2 or weight.dtype not in VALUES or not _is_plain_tensor(weight):
        return False
    return _has_linear_forward(module) or _computes_linear_map(module)


def resembles_linear(module: nn.Module) -> bool:
    """Whether the module stands where a linear map would, but `is_linear` it is not: other codes, and the like."""
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    named = all(isinstance(size, int) for size in sizes)
    return (named or isinstance(module, nn.Linear)) and not is_linear(module)


def weight_matrix(module: nn.Module) -> Tensor:
    """The weight as (out, in), detached, a view of the module's own memory; of a quantised map its values, made now."""
    if is_quantised(module):
        return _values_of_codes(module)
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return weight.mT if is_transposed(module) else weight


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(out_features, in_features)."""
    if is_quantised(module):
        return module.out_features, module.in_features  # type: ignore[return-value]
    out_features, in_features = weight_matrix(module).shape  # of all of it, also where it is sharded
    return out_features, in_features


def is_plain_and_frozen(module: nn.Module) -> bool:
    """Whether the module computes x Wᵀ + b and nothing else, with W and b that need no gradient.

    One with hooks does what they do too.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    plain = (type(module) is nn.Linear or is_transposed(module)) and not hooked and _has_linear_forward(module)
    return plain and not any(parameter.requires_grad for parameter in module.parameters())


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a linear map takes x: that of autocast where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@torch.no_grad()
def _values_of_codes(module: Any) -> Tensor:
    """W (out, in) of a quantised map, in the dtype that it was quantised from; of 8 bits in float32."""
    weight = module.weight
    if weight.dtype == torch.int8:
        # Where the scale of a row lies depends on whether the map has been used.
        scale = weight.SCB if getattr(weight, "SCB", None) is not None else module.state.SCB
        scaled: Tensor = weight.detach().as_subclass(Tensor).float() * (scale.float() / 127).unsqueeze(1)
        return scaled
    from bitsandbytes.functional import dequantize_4bit

    values: Tensor = dequantize_4bit(weight.detach(), weight.quant_state)
    return values


def _is_plain_tensor(weight: Tensor) -> bool:
    """Whether the parameter is a tensor as any other, or one that FSDP2 has sharded; subclasses may hold codes."""
    kind = type(weight)
    return kind in {nn.Parameter, Tensor} or kind.__module__.startswith("torch.distributed.")


def _has_linear_forward(module: nn.Module) -> bool:
    """Whether `forward` is that of `nn.Linear` or Conv1D, not a subclass's, nor one put on the module itself."""
    inherited = is_transposed(module) or type(module).forward is nn.Linear.forward
    return inherited and "forward" not in vars(module)


@torch.no_grad()
def _computes_linear_map(module: nn.Module) -> bool:
    matrix = weight_matrix(module)
    if matrix.is_meta or not _is_plain_tensor(matrix):
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(4, matrix.shape[1], generator=generator, device="cpu").to(matrix.device, matrix.dtype)
    bias: Tensor | None = getattr(module, "bias", None)
    try:
        with evaluating(module), torch.autocast(x.device.type, enabled=False):
            difference = module(x) - F.linear(x, matrix, bias)
            size = F.linear(x, matrix).norm()
    except Exception:  # whatever it takes, it is not rows of floats
        return False
    rounding = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.003}[matrix.dtype]
    return bool(difference.norm() <= rounding * size)
