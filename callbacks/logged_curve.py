"""Curves that a run leaves, stopped or not: each step once, and all of them up to its checkpoint."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from lit_spectral.files import write_text
from lit_spectral.progress import begin_validation

__all__ = ["LoggedCurve", "logged_step"]


def logged_step(trainer: pl.Trainer) -> int:
    """Under which step Lightning logs what came of the last optimizer step: the first one's is 0."""
    return max(trainer.global_step - 1, 0)


class LoggedCurve(Callback):
    """Has loggers write what they hold when a checkpoint is saved, and take back what a resumed run will log again.

    For TensorBoard's and CSV loggers. Of the latter the file that the run goes on from lies beside the new one.
    """

    def __init__(self) -> None:
        self._saved = self._validating = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the curve up to here before the checkpoint; a validation that is not logged is to be begun anew."""
        if self._validating and trainer.state.fn == TrainerFn.FITTING:
            begin_validation(checkpoint["loops"]["fit_loop"])
        self._flush(trainer)
        self._saved = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write what Lightning logs of a step after a checkpoint of it is saved."""
        if self._saved:
            self._flush(trainer)
            self._saved = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take back what a run that was broken off had logged after its checkpoint."""
        step = trainer.global_step
        if not trainer.is_global_zero or not step:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _purge_events(logger, step)
            elif isinstance(logger, CSVLogger):
                for file in Path(logger.log_dir).glob("metrics-*.csv"):
                    _purge_rows(file, step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What it finds is logged at its end."""
        self._validating = not trainer.sanity_checking

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It was logged."""
        self._validating = False

    def _flush(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.flush()
                else:
                    logger.save()


def _purge_events(logger: TensorBoardLogger, step: int) -> None:
    """Tell TensorBoard that what it finds from this step on in earlier files does not count."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    logger.experiment.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)


def _purge_rows(file: Path, step: int) -> None:
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        rows = list(reader)
    kept = [row for row in rows if int(float(row.get("step") or 0)) < step]
    if len(kept) < len(rows):
        text = io.StringIO()
        writer = csv.DictWriter(text, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(kept)
        write_text(file, text.getvalue())
