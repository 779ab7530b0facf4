"""Backbones whose linear maps are codes of 4 or 8 bits, by bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lit_spectral.adapters.linear import compute_dtype, is_quantised, weight_matrix
from lit_spectral.errors import InputError, nearest

__all__ = ["check_quantization", "compute_with_values", "quantization_config"]

QUANTIZATIONS = ("nf4", "int8")


def check_quantization(kind: str | None) -> None:
    """InputError for one that there is not, or without bitsandbytes."""
    if kind is None:
        return
    if kind not in QUANTIZATIONS:
        raise InputError(f"quantization: there is no {kind!r}{nearest(str(kind), QUANTIZATIONS)}")
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"quantization: {kind} is by bitsandbytes, which is not installed; pip install 'lit-spectral[quantization]'"
        )


def quantization_config(kind: str, auto_class: Any, source: str, **of_files: Any) -> Any:
    """The config by which transformers has bitsandbytes quantise an encoder's linear maps, and no others.

    Args:
        kind: `nf4` with its scales in 8 bits (QLoRA; Dettmers et al., 2023), or `int8`.
        auto_class: of transformers, or a model's own class.
        source: a folder or a hub id.
        of_files: what `from_pretrained` of a config takes.

    Raises:
        InputError: the files hold codes already.
    """
    from transformers import AutoConfig, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(source, **of_files)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"quantization: the files of {source} are quantised already; leave it out")
    with torch.device("meta"):
        if hasattr(auto_class, "from_config"):
            outline = auto_class.from_config(config, trust_remote_code=of_files.get("trust_remote_code", False))
        else:
            outline = auto_class(config)
    parts = [name for name, _ in outline.named_children()]
    heads = set(parts) - {outline.base_model_prefix} if outline.base_model_prefix in parts else set()
    # What is new is trained, in floats: heads, and the pooler that checkpoints of masked-language models lack.
    kept = [r".*pooler", *sorted(heads)]
    made: Any = BitsAndBytesConfig
    if kind == "int8":
        return made(load_in_8bit=True, llm_int8_skip_modules=kept)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return made(load_in_4bit=True, llm_int8_skip_modules=kept, **nf4)


def compute_with_values(model: nn.Module) -> None:
    """Have a model's quantised maps compute x Wᵀ + b in the dtype of x, W being what the codes stand for.

    bitsandbytes' own forward passes take other paths with gradients than without, pack codes anew on CPUs, and
    round inputs of 8-bit maps by what else is in the batch: a row's result would depend on its company.
    """
    for module in model.modules():
        if is_quantised(module) and not isinstance(module, _WithValues):
            kind: Any = type(module)
            module.__class__ = _with_values(kind)


class _WithValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        bias: Tensor | None = self.bias  # type: ignore[assignment]
        out: Tensor = _CodedLinear.apply(x.to(compute_dtype(x)), bias, lambda: weight_matrix(self))  # type: ignore[no-untyped-call]
        return out


@cache
def _with_values(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of bitsandbytes with that forward pass; of the same name, by which peft and others know it."""
    return type(kind.__name__, (_WithValues, kind), {})


class _CodedLinear(torch.autograd.Function):
    """y = x Wᵀ + b with a frozen W that is made of its codes in either pass, and not kept between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, values: Callable[[], Tensor]) -> Tensor:
        ctx.values, ctx.bias_dtype = values, None if bias is None else bias.dtype
        return F.linear(x, values().to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        dy = gradients[0]
        dx = dy @ ctx.values().to(dy.dtype) if ctx.needs_input_grad[0] else None
        d_bias = dy.flatten(0, -2).sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return dx, d_bias, None
