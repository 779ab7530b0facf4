"""What a run computes by: its settings, as primitive values that a checkpoint can hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_spectral.tasks.averaging import averaging
from lit_spectral.tasks.saved_weights import plain

__all__ = ["differences", "given_seed", "run_settings", "same_seed"]

TRAINER = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision")
ROWS = 32  # of the training set, that tell it from another


def run_settings(trainer: pl.Trainer, task: nn.Module, optimizer: Optimizer, **others: Any) -> dict[str, Any]:
    """Settings of optimizer, trainer and data by name, `parameters` (a hash of their order), and the seed.

    Args:
        trainer: about to fit, its training data loaded.
        task: whose parameters are optimised.
        optimizer: as it was built.
        others: settings besides.
    """
    settings = {name: _as_primitive(value) for name, value in others.items()}
    settings |= {"optimizer": _class_name(optimizer), "parameters": _parameters(task, optimizer)}
    settings |= {f"optimizer.{name}": value for name, value in optimizer.defaults.items() if _is_primitive(value)}
    settings |= {"seed_everything": os.environ.get("PL_GLOBAL_SEED")}
    settings |= {f"trainer.{name}": _as_primitive(getattr(trainer, name)) for name in TRAINER}
    settings |= {"trainer.max_epochs": trainer.max_epochs, "trainer.max_steps": trainer.max_steps}
    settings |= {"trainer.devices": trainer.world_size, "batches an epoch": trainer.num_training_batches}
    settings |= {f"patience for {stop.monitor}": stop.patience for stop in trainer.early_stopping_callbacks}
    settings["weight averaging"] = ", ".join(type(callback).__name__ for callback in averaging(trainer)) or None
    return settings | _data_settings(trainer)


def differences(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Which settings are not those of the checkpoint, and what they are in both."""
    names = [name for name, value in ours.items() if saved.get(name) != value]
    if same_seed(saved):
        names = [name for name in names if name != "seed_everything"]
    return [f"{name}: {saved.get(name)}, here {ours[name]}" for name in names]


def given_seed() -> int:
    """That of `seed_everything`, or else that of torch's generator."""
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))


def same_seed(saved: Mapping[str, Any]) -> bool:
    """Whether random numbers go on as in the checkpoint: no other seed was given to `seed_everything`."""
    return os.environ.get("PL_GLOBAL_SEED") in {None, saved.get("seed_everything")}


def _class_name(optimizer: Optimizer) -> str:
    """As torch's own go by; others with their module, since some share a name."""
    kind = type(optimizer)
    return kind.__name__ if kind.__module__.startswith("torch.optim.") else f"{kind.__module__}.{kind.__name__}"


def _parameters(task: nn.Module, optimizer: Optimizer) -> str:
    """A hash of which parameters the optimizer has, by names and shapes, in their order in its groups."""
    names = {id(parameter): plain(name) for name, parameter in task.named_parameters()}
    lines = [
        f"{group.get('name')} {names.get(id(parameter))} {tuple(parameter.shape)}"
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    return _hash(lines)


def _data_settings(trainer: pl.Trainer) -> dict[str, Any]:
    """The data module and its settings, and which rows it gives to train on."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    public = {name: value for name, value in vars(data).items() if name[0] != "_"} if data is not None else {}
    settings: dict[str, Any] = {"data": type(data).__name__ if data is not None else None}
    public = {name: str(value) if isinstance(value, os.PathLike) else value for name, value in public.items()}
    settings |= {f"data.{name}": _brief(value) for name, value in public.items() if _is_primitive(value)}
    if trainer.train_dataloader is not None:
        with isolate_rng():
            loaders = CombinedLoader(trainer.train_dataloader, "sequential").flattened
            settings["training rows"] = " and ".join(map(_rows, loaders))
    return settings


def _rows(loader: Any) -> str:
    """How many rows a loader has, and a hash of some of them, as far as they are numbers and texts."""
    rows = getattr(loader, "dataset", loader)
    try:
        some = [_as_primitive(rows[index]) for index in range(0, len(rows), max(1, len(rows) // ROWS))]
    except Exception:  # a stream, rows that are not numbered, or whatever else can't be looked at by number
        return type(rows).__name__
    return f"{len(rows)} ({_hash(some)})"


def _brief(value: Any) -> Any:
    """The value, or a hash of it where it is long: a module may keep its rows in a list."""
    return value if len(repr(value)) < 1000 else _hash(value)


def _hash(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=6).hexdigest()


def _is_primitive(value: Any) -> bool:
    """Whether a checkpoint that is loaded with `weights_only` may hold it."""
    if type(value) in {list, tuple}:
        return all(_is_primitive(item) for item in value)
    if type(value) is dict:
        return all(_is_primitive(item) for pair in value.items() for item in pair)
    return value is None or type(value) in {str, int, float, bool}


def _as_primitive(value: Any) -> Any:
    """The same value of numbers and texts alone; whatever else is in it by the name of its type."""
    if isinstance(value, Tensor) or hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _as_primitive(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_primitive(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)  # of an enum too
    return value if _is_primitive(value) else type(value).__name__
