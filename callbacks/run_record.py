"""What a finished run came to, in one file."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lit_spectral.callbacks.retention_monitor import RetentionMonitor
from lit_spectral.callbacks.spectral_monitor import SpectralMonitor

from lit_spectral.errors import InputError
from lit_spectral.files import check_place, write_text

__all__ = ["RunRecord"]

TOLERANCE = 0.05  # between numbers of parameters that count as the same
WARM_UP = 3  # batches that aren't timed: the first ones allocate


class RunRecord(Callback):
    """Writes a JSON of a fit that came to its end; one that failed or was stopped leaves none.

    Keys: `metrics` (of the last validation, which was at `validated_step`), `retention` (of
    `RetentionMonitor`, if there is one), `largest_norm` (‖ΔW‖₂, of `SpectralMonitor`),
    `trainable_parameters`, `steps`, `device`, `seconds_per_step` (forward, backward and what an
    optimizer step does; no validation, reading of data or monitors) and `peak_memory` (bytes: the GPU's, or
    on a CPU those of the process; validation and retention included).

    Args:
        file: where to write; in whole, or not at all.
        parameters: how many trainable parameters are expected, to 5 %; None for any number.
        monitor: a metric that is to be among `metrics`; a fit that doesn't log it is refused, as for any callback.
    """

    def __init__(self, file: str, parameters: int | None = None, monitor: str | None = None) -> None:
        self.file = Path(file)
        check_place(self.file, "RunRecord: file")
        self.parameters = parameters
        self.monitor = monitor
        self._seconds: list[float] = []
        self._started = 0.0
        self._first_step = 0
        self._validated_step = -1
        self._finished = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an earlier fit; raise InputError when the number of parameters is not the expected one."""
        self._seconds, self._validated_step, self._finished = [], -1, False
        self._trainable = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        expected = self.parameters
        if expected is not None and abs(self._trainable - expected) > TOLERANCE * expected:
            raise InputError(
                f"{self._trainable} trainable parameters, where {expected} are compared with: more than "
                f"{TOLERANCE:.0%} off; give another rank, or --unmatched"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._first_step = trainer.global_step
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        _wait(pl_module.device)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it."""
        _wait(pl_module.device)
        self._seconds.append(time.perf_counter() - self._started)
        if trainer.global_step == trainer.max_steps or (
            trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        ):
            # Has Lightning validate at the end, as it doesn't within an epoch, or between those of val_check_interval.
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember of which step the metrics are."""
        if not trainer.sanity_checking:
            self._validated_step = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Only now it has come to its end."""
        self._finished = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write, after other callbacks have measured the end."""
        if stage != "fit" or not self._finished or not trainer.is_global_zero:
            return
        found: dict[str, Any] = {"metrics": {name: float(value) for name, value in trainer.callback_metrics.items()}}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RetentionMonitor):
                found["retention"] = callback.latest
            elif isinstance(callback, SpectralMonitor):
                found["largest_norm"] = callback.latest_max
        steps = max(trainer.global_step - self._first_step, 1)
        device = trainer.strategy.root_device  # by now Lightning has moved the module to the CPU
        timed = self._seconds[WARM_UP:] or self._seconds
        found |= {
            "trainable_parameters": self._trainable,
            "steps": trainer.global_step,
            "validated_step": self._validated_step,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "seconds_per_step": sum(timed) / max(len(timed), 1) * len(self._seconds) / steps,
            "peak_memory": _peak_memory(device),
        }
        write_text(self.file, json.dumps(found, indent=1))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return math.nan
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident
