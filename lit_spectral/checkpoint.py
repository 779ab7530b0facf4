"""Rebuilding a trained task from its checkpoint alone."""

from __future__ import annotations

import os
from typing import Any

import torch

from lit_spectral import methods, tasks
from lit_spectral.errors import InputError
from lit_spectral.tasks import Task

__all__ = ["load"]


def load(checkpoint: str | os.PathLike[str], backbone: str | None = None) -> Task:
    """The task of a checkpoint: backbone loaded, adapter attached, trained weights in place, eval mode.

    Args:
        checkpoint: a `.ckpt` that `fit` wrote.
        backbone: where the backbone lies now; None for where it was when the checkpoint was written.

    Raises:
        InputError: not one of this package's checkpoints, or it does not fit the backbone.
    """
    content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    saved = content.get("lit_spectral")
    if saved is None:
        raise InputError(f"{checkpoint} was not written by lit-spectral")
    settings = dict(saved["method"])
    method = getattr(methods, settings.pop("name"))(**settings)
    init = saved["init"] | ({"backbone": backbone} if backbone is not None else {})
    task: Task = getattr(tasks, saved["task"])(method=method, **init)
    task.configure_model()
    task.on_load_checkpoint(content)
    task.load_state_dict(content["state_dict"], strict=False)
    return task.eval()
