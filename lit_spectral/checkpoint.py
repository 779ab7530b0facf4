"""Rebuilding a trained task from its checkpoint alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lit_spectral.errors import InputError
from lit_spectral.tasks import Task

__all__ = ["load", "log_folder", "usable_device"]


def load(checkpoint: str | os.PathLike[str], backbone: str | None = None) -> Task:
    """The task of a checkpoint: backbone loaded, adapter attached, trained weights in place, eval mode.

    Args:
        checkpoint: a `.ckpt` that `fit` wrote.
        backbone: where the backbone lies now; None for where it was when the checkpoint was written.

    Raises:
        InputError: no file, not one of this package's checkpoints, or it does not fit the backbone.
    """
    given: dict[str, Any] = {} if backbone is None else {"backbone": backbone}
    return Task.load_from_checkpoint(checkpoint, **given).eval()


def log_folder(checkpoint: str | os.PathLike[str]) -> Path:
    """The log folder of the run that wrote a checkpoint, where TensorBoard finds what is put there."""
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else folder


def usable_device(name: str | None = None) -> torch.device:
    """The device of that name; without one the first GPU, or the CPU.

    Raises:
        InputError: no such device, or none that can be used.
    """
    try:
        device = torch.device(("cuda:0" if torch.cuda.is_available() else "cpu") if name is None else name)
        torch.empty(0, device=device)
        if device.type == "meta" or (device.type == "cpu" and device.index):
            raise RuntimeError("there is no such device")
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: {name} can't be used: {str(error).splitlines()[0]}") from None
    return device
