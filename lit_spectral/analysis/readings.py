"""What a backbone is measured by besides its weights: its loss on texts, and on the validation data of runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_spectral.callbacks import RunRecord
from lit_spectral.errors import InputError
from lit_spectral.methods import Given
from lit_spectral.retention.base_model import base_model, original_weights
from lit_spectral.retention.retention import Batch, Retention
from lit_spectral.retention.texts import first_rows
from lit_spectral.sweeps.unrun import unrun
from lit_spectral.sweeps.validation import task_metric, validated
from lit_spectral.tasks import Task
from lit_spectral.updates.delta import Delta

__all__ = ["Reading", "RunReading", "TextReading", "checkpoint_of", "config_of"]


class Reading:
    """Rows with a loss, and the task whose model reads them, its adapter put on by `Given`.

    Attributes:
        name: what it is called.
        task: with its model.
    """

    name: str
    task: Task

    @abstractmethod
    def batches(self, size: int) -> Sequence[Any]:
        """The rows, so many at a time."""

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, Tensor | int]:
        """Of the model as it is now, summed over a batch (0-d, nats), and over how many tokens, or rows."""

    @abstractmethod
    def base(self) -> AbstractContextManager[None]:
        """Within it, the model computes what its backbone did."""

    def mean_loss(self, batches: Sequence[Any]) -> float:
        """Of the model as it is now, nats a scored token, or row."""
        sums = [[float(part) for part in self.loss(batch)] for batch in batches]
        return sum(loss for loss, _ in sums) / max(sum(count for _, count in sums), 1)


class TextReading(Reading):
    """A text, under a decoder's head or an encoder's masked-language head.

    Args:
        name: of the text.
        text: whatever `Retention` takes.
        task: of the method `Given`.
        limit: windows or lines from its start; None for all.
        max_length: tokens of one.

    Raises:
        InputError: a text that can't be had; an encoder without a masked-language head.
    """

    def __init__(self, name: str, text: str, task: Task, limit: int | None, max_length: int) -> None:
        self.name, self.task = name, task
        self._how = {name: text}, None, limit, max_length
        self._retention = self._prepared(1)
        if not self._retention.by_tokens(task):
            raise InputError(
                f"analyze: {task.backbone} has no masked-language head, and no loss on texts; give --tasks NAME=RUN"
            )

    def batches(self, size: int) -> Sequence[Batch]:
        """The text's, on the task's device."""
        if size != self._retention.batch_size:
            self._retention = self._prepared(size)
        return list(self._retention.batches(self.task, self.name))

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy over next tokens, or masked ones."""
        logits: Any = self._retention.outputs(self.task, batch).logits
        logits, wanted = logits if logits.dtype == torch.float64 else logits.float(), batch.wanted[batch.scored]
        return F.cross_entropy(logits, wanted, reduction="sum"), len(wanted)

    def base(self) -> AbstractContextManager[None]:
        """As `Retention.base`."""
        return self._retention.base(self.task)

    def _prepared(self, size: int) -> Retention:
        retention = Retention(*self._how, size)
        retention.prepare(self.task)
        return retention


def config_of(folder: Path) -> Path:
    """Of a run, by which it was trained and is measured."""
    return folder / "config.yaml"


def checkpoint_of(folder: Path) -> Path:
    """Of the end of a run."""
    return folder / "checkpoints" / "last.ckpt"


class RunReading(Reading):
    """The validation data of a run by its task, under the head that the run trained.

    Args:
        name: of the task.
        folder: of the run: `config.yaml` and `checkpoints/last.ckpt`.
        backbone: where it lies, if not where the run's config says.
        device: where to measure.
        limit: rows of what `batches` gives, from the start; None for all.

    Attributes:
        metric: by which its comparison, or its best checkpoint, goes; else the loss.

    Raises:
        InputError: as `fit` would refuse its config; an adapter that can't be read.
    """

    def __init__(
        self, name: str, folder: Path, backbone: str | None, device: torch.device, limit: int | None = None
    ) -> None:
        cli = unrun(str(config_of(folder)), str(checkpoint_of(folder)), backbone, device)
        told: Any = cli.trainer
        compared = (each.monitor for each in told.callbacks if isinstance(each, RunRecord))
        self.name, self.task, self.metric = name, cli.model, next(compared, None) or task_metric(told)
        self._data, self._limit = cli.datamodule, limit
        self._trainer: Any = told
        self._own = self._method.read(backbone)

    @property
    def _method(self) -> Given:
        method = self.task.method
        assert isinstance(method, Given)
        return method

    def put(self, changes: Mapping[str, Delta]) -> None:
        """Have these changes in place of the run's own. What was trained whole, such as a head, stays the run's."""
        self._method.put(replace(self._own, changes=dict(changes)))

    def validated(self) -> dict[str, float]:
        """All that the run's validation logs, of the model as it is now."""
        return validated(self._trainer, self.task, datamodule=self._data)

    def batches(self, size: int) -> Sequence[dict[str, Tensor]]:
        """Of the first validation set, on the task's device."""
        if self._trainer.datamodule is None:  # a validation sets it up
            whole, self._trainer.limit_val_batches = self._trainer.limit_val_batches, 1
            self.validated()
            self._trainer.limit_val_batches = whole
        rows = first_rows(self._data, size, self._limit)
        return [{key: each.to(self.task.device) for key, each in batch.items()} for batch in rows]

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | int]:
        """The task's own."""
        return self.task.summed_loss(batch)

    def base(self) -> AbstractContextManager[None]:
        """The backbone under the run's head."""
        return base_model(self.task, original_weights(self.task))
