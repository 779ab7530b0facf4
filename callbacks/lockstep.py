"""Processes that share a model by shards keep step, also where one has fewer batches than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_spectral.generation import continue_batch
from lit_spectral.strategies import shards

__all__ = ["Lockstep"]

TOKENS = 4


class Lockstep(Callback):
    """Lets a process that has run out of batches help the others to theirs, where the backbone is sharded.

    To put a block together all processes must run it at once. Evaluation counts each row once, so that one process may
    have a batch more than another; the others then run the model on a few tokens, of which nothing is kept.
    """

    def __init__(self) -> None:
        self._missing = 0  # batches that this process is behind the one that has most
        self._generates = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Go before callbacks that exchange something at the end of an evaluation."""
        trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]

    def _begin(self, trainer: pl.Trainer, batches: Sequence[int | float]) -> None:
        """Compare numbers of batches before anything runs, since nobody listens while another runs the model."""
        self._missing, self._generates = 0, False
        if shards(trainer) and sum(batches) < math.inf:
            ours = torch.tensor(int(sum(batches)), device=trainer.strategy.root_device)
            self._missing = int(trainer.strategy.reduce(ours.clone(), reduce_op="max") - ours)

    def _look(self, batch: Any) -> None:
        self._generates = isinstance(batch, dict) and "gold" in batch

    @torch.no_grad()
    def _catch_up(self, trainer: pl.Trainer, task: Any) -> None:
        if not self._missing:
            return
        device = task.model.get_input_embeddings().weight.device
        tokens = {name: torch.ones(1, TOKENS, dtype=torch.long, device=device) for name in _INPUTS}
        for _ in range(self._missing):
            self._run(trainer, task, tokens)

    def _run(self, trainer: pl.Trainer, task: Any, tokens: dict[str, Tensor]) -> None:
        with trainer.precision_plugin.forward_context():
            if self._generates:  # until the last process is done
                continue_batch(task.model, trainer.datamodule.tokenizer, tokens, 1)  # type: ignore[attr-defined]
            else:
                task.model(**tokens)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count batches."""
        self._begin(trainer, trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, *args: Any) -> None:
        """See what is done with them."""
        self._look(batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run with the others."""
        self._catch_up(trainer, pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count batches."""
        self._begin(trainer, trainer.num_test_batches)

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, *args: Any) -> None:
        """See what is done with them."""
        self._look(batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run with the others."""
        self._catch_up(trainer, pl_module)

    def on_predict_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count batches."""
        self._begin(trainer, trainer.num_predict_batches)

    def on_predict_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, *args: Any) -> None:
        """See what is done with them."""
        self._look(batch)

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run with the others."""
        self._catch_up(trainer, pl_module)


_INPUTS = ("input_ids", "attention_mask")
