"""The progress bar of the command line's runs."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["RunBar"]

# Seconds between looks at what was logged, which make a GPU wait.
INTERVAL = 0.5


class RunBar(ProgressBar):
    """One bar for a whole fit, in optimizer steps, with what the task logs for bars and the time that is left.

    A validation within it has a bar below while it lasts, and so have sets that are validated, tested or predicted
    alone. Nothing of it stays, and off a terminal there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bars: Progress | None = None
        self._steps: TaskID | None = None
        self._set: TaskID | None = None
        self._looked = 0.0

    def disable(self) -> None:
        """Show nothing from now on, as on all processes but one."""
        self._enabled = False

    def enable(self) -> None:
        """Show it again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, where the run is."""
        steps = int(trainer.estimated_stepping_batches)
        self._steps = self._start().add_task("steps", total=steps, completed=trainer.global_step, logged="")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *of_batch: Any) -> None:
        """Count steps, and now and then show what was logged."""
        if self._bars is None or self._steps is None or self._bars.disable:
            return
        told = {}
        if time.monotonic() - self._looked > INTERVAL:
            self._looked = time.monotonic()
            metrics = self.get_metrics(trainer, pl_module)
            metrics.pop("v_num", None)
            names = {name: name.replace("sigma_max", "σ_max").removeprefix("train/") for name in metrics}
            told["logged"] = "  ".join(f"{names[name]} {value:.4g}" for name, value in metrics.items())
        self._bars.update(self._steps, completed=trainer.global_step, **told)  # type: ignore[arg-type]

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin a set."""
        if not trainer.sanity_checking and self.has_dataloader_changed(dataloader_idx):
            self._begin("validating", self.total_val_batches_current_dataloader)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin a set."""
        if self.has_dataloader_changed(dataloader_idx):
            self._begin("testing", self.total_test_batches_current_dataloader)

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin a set."""
        if self.has_dataloader_changed(dataloader_idx):
            self._begin("predicting", self.total_predict_batches_current_dataloader)

    def on_validation_batch_end(self, *given: Any) -> None:
        """One more."""
        self._advance()

    def on_test_batch_end(self, *given: Any) -> None:
        """One more."""
        self._advance()

    def on_predict_batch_end(self, *given: Any) -> None:
        """One more."""
        self._advance()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take its bar away."""
        self._end(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take its bar away."""
        self._end(trainer)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take its bar away."""
        self._end(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Stop."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Stop."""
        self._stop()

    def _start(self) -> Progress:
        if self._bars is None:
            console = get_console()
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[logged]}"),
                console=console,
                transient=True,
                disable=not (self._enabled and console.is_terminal),
            )
            self._bars.start()
        return self._bars

    def _begin(self, what: str, batches: float) -> None:
        self._finish_set()
        self._set = self._start().add_task(what, total=int(batches) if batches < float("inf") else None, logged="")

    def _advance(self) -> None:
        if self._bars is not None and self._set is not None:
            self._bars.advance(self._set)

    def _finish_set(self) -> None:
        if self._bars is not None and self._set is not None:
            self._bars.remove_task(self._set)
        self._set = None

    def _end(self, trainer: pl.Trainer) -> None:
        self._finish_set()
        self.reset_dataloader_idx_tracker()
        if trainer.state.fn != TrainerFn.FITTING:
            self._stop()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._steps, self._set = None, None, None
