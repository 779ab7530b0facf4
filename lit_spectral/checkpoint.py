"""Rebuilding a trained task from its checkpoint alone, or from an adapter of whatever kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lit_spectral.backbones import fetch
from lit_spectral.checkpoint_file import read, saved_by_task
from lit_spectral.errors import InputError
from lit_spectral.methods import Given
from lit_spectral.tasks import SequenceClassification, Task, rebuild
from lit_spectral.tasks.of_model import MODELS, task_of_model

__all__ = ["load", "load_given", "log_folder", "steps_of", "usable_device"]


def load(source: str | os.PathLike[str], backbone: str | None = None) -> Task:
    """The task of what was trained: backbone loaded, adapter attached, trained weights in place, eval mode.

    Args:
        source: a `.ckpt` that `fit` wrote; an adapter of peft's or a folder of fine-tuned weights, as `load_given`.
        backbone: where the backbone lies now; None for where it was when the source was written.

    Raises:
        InputError: nothing there, not one of these, or it does not fit the backbone.
    """
    if os.path.isdir(source):
        return load_given(source, backbone)
    given: dict[str, Any] = {} if backbone is None else {"backbone": backbone}
    return Task.load_from_checkpoint(source, **given).eval()


def load_given(source: str | os.PathLike[str], backbone: str | None = None) -> Task:
    """The task of any source, its adapter put on by `Given`, which can exchange it; of a checkpoint too.

    Of other sources the task goes by the class of their model, or the backbone's, where they don't say theirs.

    Raises:
        InputError: as `load`; a model of a task that there isn't.
    """
    method = Given(source=os.fspath(source))  # type: ignore[abstract]
    if os.path.isdir(source):
        kind, arguments = _of_update(method, backbone)
    else:
        saved = saved_by_task(read(source, summary=True))
        kind, arguments = rebuild.class_of(saved, Task), rebuild.arguments(saved, {})  # type: ignore[type-abstract]
        method.read(backbone)
    given = {} if backbone is None else {"backbone": backbone}
    task = kind(**(arguments | given | {"method": method}))
    task.configure_model()
    return task.eval()


def _of_update(method: Given, backbone: str | None) -> tuple[type[Task], dict[str, Any]]:
    """The task of the model that an update is of, and its arguments."""
    from lit_spectral.updates.model_folder import described

    update = method.read(backbone)
    place = backbone or update.backbone
    if not place:
        raise InputError(f"{method.source}: it does not say which backbone it is of; give --backbone FOLDER")
    config, model = described(update, fetch(place))
    name = model.__name__
    kind = task_of_model(name)
    if kind is None:
        raise InputError(
            f"{method.source}: it is of a {name}, and there is no task of that; there are "
            f"{', '.join(each.__name__ for each in MODELS)}"
        )
    arguments: dict[str, Any] = {"backbone": place}
    if kind is SequenceClassification:
        arguments["num_labels"] = config.num_labels
    return kind, arguments


def steps_of(source: str | os.PathLike[str], task: Task) -> int:
    """After how many optimizer steps a source was written; 0 where it doesn't say."""
    if isinstance(task.method, Given):
        steps = task.method.read().origin.get("steps")
        return steps if isinstance(steps, int) else 0
    return int(read(source, summary=True)["global_step"])


def log_folder(source: str | os.PathLike[str]) -> Path:
    """The log folder of the run that wrote a checkpoint, where TensorBoard finds what is put there.

    Of other sources, which lie in nobody's run, the current folder.
    """
    if os.path.isdir(source):
        return Path()
    folder = Path(source).parent
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
