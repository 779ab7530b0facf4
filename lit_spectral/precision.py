"""Whether a device computes faster in bfloat16 than in float32, and one line that says so."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["advise_bf16"]

SMALL = 10_000_000  # parameters below which anything is short in any precision


def advise_bf16(model: nn.Module, device: torch.device, flag: str) -> None:
    """Print that `flag` would save time, if the model is of some size, in float32, and the device has bfloat16."""
    parameters = sum(each.numel() for each in model.parameters() if each.dtype == torch.float32)
    if parameters >= SMALL and _has_bf16(device):
        print(f"float32, where bfloat16 is much faster here: {flag}", flush=True)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch asks it of the processor, but has no public name for it.
    asked = (getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile"))
    return device.type == "cpu" and any(supported() for supported in asked)
