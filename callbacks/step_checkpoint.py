"""A checkpoint every so many optimizer steps, to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_spectral.errors import check_at_least

__all__ = ["StepCheckpoint"]


class StepCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` every `every_n_steps` optimizer steps, at the end of each epoch, and when a run breaks off.

    It saves when all is done and logged that belongs to a step, a validation too, so that a run which goes on from
    there logs no step twice and misses none. `--save_every_n_steps` is this callback.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        dirpath: as in Lightning's `ModelCheckpoint`.
    """

    def __init__(self, every_n_steps: int, dirpath: str | None = None) -> None:
        check_at_least(1, every_n_steps=every_n_steps)
        super().__init__(dirpath, filename="last", save_on_exception=True, enable_version_counter=False)
        self.every_n_steps = every_n_steps
        self._last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What a run goes on from need not be saved again."""
        super().on_train_start(trainer, pl_module)
        self._last_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save after a step that is due; the end of an epoch has been saved."""
        step = trainer.global_step
        if batch_idx and step != self._last_step and step % self.every_n_steps == 0:
            trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")
        self._last_step = step
