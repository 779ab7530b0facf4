"""Where adapters are measured: each task's model, loaded once, and its validation data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import yaml
from torch import Tensor

from lit_spectral.adapters.linear import is_linear
from lit_spectral.errors import InputError
from lit_spectral.methods import Given
from lit_spectral.studies.finished import Adapter
from lit_spectral.sweeps.unrun import unrun
from lit_spectral.tasks import Task
from lit_spectral.updates import sources
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.merging import merge
from lit_spectral.updates.update import Update

__all__ = ["Bench"]


class Bench:
    """Measures adapters, and merges of them, by the configs of the runs that trained them; no merge is written.

    A task's model is loaded when it is first needed, and only adapters are exchanged on it. The validation
    data are those of the very run: where a seed says which rows are held out, no adapter is measured on rows that it
    was trained on.

    Args:
        backbone: where it lies, if not where the runs' configs say.
        device: where to measure.
    """

    def __init__(self, backbone: str | None, device: torch.device) -> None:
        self._backbone = backbone
        self._device = device
        self._tasks: dict[str, tuple[pl.Trainer, Task]] = {}  # by what says how they are loaded
        self._data: dict[str, Any] = {}
        self._settings: dict[Adapter, _Settings] = {}
        self._updates: dict[Adapter, Update] = {}
        self._weights: dict[str, dict[str, Tensor]] = {}  # of each task's model

    def alone(self, adapter: Adapter) -> dict[str, float]:
        """All that a validation logs of one adapter."""
        return self._measured(adapter, self._update(adapter))

    def merged(self, adapters: list[Adapter], rule: str, weight: float) -> dict[str, Update]:
        """The merge as each task has it, by task: ΔW is the same, and all that was trained whole is the task's own.

        Heads, and norms, biases or embeddings of some methods, mean nothing to other tasks, whatever their shapes.

        Args:
            adapters: of one task each.
            rule: of `merge_rules.RULES`, with its own settings.
            weight: of every ΔW.

        Raises:
            InputError: as `merge`; or an adapter without ΔW.
        """
        updates = {adapter: self._update(adapter) for adapter in adapters}
        # Whether all are of one backbone is checked by its weights: digests of models with other heads may differ.
        changes = {adapter.name: replace(each, whole={}, digest="") for adapter, each in updates.items()}
        base = None
        if any(each.needs_weights for each in updates.values()) and rule != "add":
            base = Backbone(next(iter(updates.values())).backbone).weights
        found = merge(changes, rule, [weight] * len(adapters), base=base).update.changes
        noted = {"merged": rule, "weight": weight, "of": [adapter.name for adapter in adapters]}
        return {
            adapter.task: replace(each, changes=found, origin={**each.origin, **noted})
            for adapter, each in updates.items()
        }

    def within(self, adapter: Adapter, merged: Update) -> dict[str, float]:
        """All that a validation logs of a merge that this adapter is part of, on this one's data."""
        return self._measured(adapter, merged)

    def forget(self) -> None:
        """Adapters that were read, since a study goes by methods."""
        self._updates.clear()

    def _update(self, adapter: Adapter) -> Update:
        if adapter not in self._updates:
            update = sources.read(str(adapter.checkpoint), self._backbone)
            if not update.changes:
                raise InputError(f"merge-study: {adapter.name} changes no linear map, and there is nothing to merge")
            self._updates[adapter] = update
        return self._updates[adapter]

    def _measured(self, adapter: Adapter, update: Update) -> dict[str, float]:
        trainer, task = self._task(adapter)
        method = task.method
        assert isinstance(method, Given)
        method.put(update)
        with _quiet():
            trainer.validate(task, datamodule=self._data[self._settings[adapter].data], verbose=False)
        self._check_backbone(adapter, task, update)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _task(self, adapter: Adapter) -> tuple[pl.Trainer, Task]:
        """With the data of this adapter's seed at hand."""
        if adapter not in self._settings:
            self._settings[adapter] = _settings(adapter)
        settings = self._settings[adapter]
        if settings.data not in self._data or settings.model not in self._tasks:
            with _quiet():
                cli = unrun(str(adapter.config), str(adapter.checkpoint), self._backbone, self._device)
            self._data.setdefault(settings.data, cli.datamodule)
            self._tasks.setdefault(settings.model, (cli.trainer, cli.model))
        return self._tasks[settings.model]

    def _check_backbone(self, adapter: Adapter, task: Task, update: Update) -> None:
        """InputError unless the weights that an update changes are those of the first task's model; once a task."""
        if adapter.task in self._weights:
            return
        weights = _weights(task.model)
        first, theirs = next(iter(self._weights.items()), (adapter.task, weights))
        for path in update.changes:
            name = path.removeprefix(f"{task.model.base_model_prefix}.")
            if name not in theirs or not _same(theirs[name], weights[name]):
                raise InputError(
                    f"merge-study: {first} and {adapter.task} are of different backbones, which {name} tells; give "
                    "comparisons of one"
                )
        self._weights[adapter.task] = weights


class _Settings(NamedTuple):
    """What runs of one task may differ by that are validated apart: a comparison may sweep over either."""

    model: str
    data: str


def _settings(adapter: Adapter) -> _Settings:
    given = yaml.safe_load(adapter.config.read_text(encoding="utf-8"))
    trained = {"method", "optimizer", "lr_scheduler"}
    model = {name: value for name, value in given["model"]["init_args"].items() if name not in trained}
    precision = given["trainer"].get("precision")
    return _Settings(repr((adapter.task, model, precision)), repr((adapter.task, given["data"])))


def _weights(model: Any) -> dict[str, Tensor]:
    """Of the linear maps of its pretrained part, those that are adapted too, by path there."""
    named: Iterable[tuple[str, Any]] = model.base_model.named_modules()
    maps = ((path, getattr(module, "base_layer", module)) for path, module in named)
    return {path: module.weight for path, module in maps if is_linear(module)}


def _same(one: Tensor, other: Tensor) -> bool:
    """Of weights, which one of two runs may hold in bfloat16; codes are compared as they are."""
    if one.is_floating_point() and other.is_floating_point():
        one, other = one.to(torch.bfloat16), other.to(torch.bfloat16)
    return torch.equal(one.detach().cpu(), other.detach().cpu())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says of every trainer."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
