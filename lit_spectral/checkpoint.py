"""Rebuilding a trained task from its checkpoint alone."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from lit_spectral import methods, tasks
from lit_spectral.errors import InputError
from lit_spectral.tasks import Task
from lit_spectral.tasks.fit_check import saved_by_task

__all__ = ["check_ckpt_path", "load", "log_folder", "usable_device"]


def load(checkpoint: str | os.PathLike[str], backbone: str | None = None) -> Task:
    """The task of a checkpoint: backbone loaded, adapter attached, trained weights in place, eval mode.

    Args:
        checkpoint: a `.ckpt` that `fit` wrote.
        backbone: where the backbone lies now; None for where it was when the checkpoint was written.

    Raises:
        InputError: no file, not one of this package's checkpoints, or it does not fit the backbone.
    """
    content = _read(checkpoint)
    saved = saved_by_task(content)
    settings = dict(saved["method"])
    method = getattr(methods, settings.pop("name"))(**settings)
    init = saved["init"] | ({"backbone": backbone} if backbone is not None else {})
    task: Task = getattr(tasks, saved["task"])(method=method, **init)
    task.configure_model()
    task.on_load_checkpoint(content)
    task.load_state_dict(content["state_dict"], strict=False)
    return task.eval()


def check_ckpt_path(ckpt_path: str) -> None:
    """InputError for a path that `trainer.fit` couldn't read; words, such as `last`, and addresses pass."""
    if ckpt_path in {"best", "last", "hpc"} or "://" in ckpt_path or ckpt_path.startswith("registry"):
        return
    if not os.path.exists(ckpt_path):
        raise InputError(f"ckpt_path: there is no file {ckpt_path}; give a .ckpt that fit wrote")
    if os.path.isfile(ckpt_path) and not zipfile.is_zipfile(ckpt_path):  # a sharded one is a folder
        raise InputError(f"ckpt_path: {ckpt_path} can't be read as a checkpoint; give a .ckpt that fit wrote")


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
        device = torch.device(name or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: {name} can't be used: {str(error).splitlines()[0]}") from None
    return device


def _read(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    if not os.path.isfile(checkpoint):
        raise InputError(f"checkpoint: there is no file {checkpoint}; give a .ckpt that fit wrote")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(f"checkpoint: {checkpoint} can't be read as a checkpoint; give a .ckpt of fit's") from error
    if not isinstance(content, dict) or "lit_spectral" not in content:
        raise InputError(f"checkpoint: {checkpoint} was not written by lit-spectral; give a .ckpt of its fit")
    return content
