"""A task's own metrics, of every value of a sweep: `lit-spectral validate --adapter SOURCE --scale 0:1:0.1`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_spectral.callbacks import RetentionMonitor
from lit_spectral.run_folder import own_folder
from lit_spectral.sweeps.report import Report
from lit_spectral.sweeps.sweep import sweep
from lit_spectral.sweeps.values import Sweep
from lit_spectral.tasks import Task

__all__ = ["task_metric", "validate_each", "validated"]


def validate_each(trainer: pl.Trainer, sweeps: Sequence[Sweep], model: Task, **given: Any) -> None:
    """Validate a task for every value; a table of all that was logged, a plot, and JSON in the log folder or here.

    With a `RetentionMonitor` among the trainer's callbacks what is retained is measured too.

    Args:
        trainer: of a config.
        sweeps: of the task's adapter.
        model: the task, of the method `Given`.
        given: what else `trainer.validate` takes.
    """
    monitor: Any = next((c for c in trainer.callbacks if isinstance(c, RetentionMonitor)), None)  # type: ignore[attr-defined]
    retention: Any = None

    def measure() -> dict[str, float]:
        nonlocal retention
        found = validated(trainer, model, **given)
        if monitor is not None:
            retention = retention or monitor.prepared(model)
            with trainer.precision_plugin.forward_context():
                found |= {f"retention/{name}": value for name, value in retention.measure(model).items()}
        return found

    folder = own_folder(trainer) or Path()
    settings = {"sweeps": {each.repair: each.values for each in sweeps}}
    report = Report(
        folder / "sweep.json", settings, model, task_metric(trainer), sum(len(s.values) for s in sweeps) + 1
    )
    for row in sweep(model, sweeps, measure):
        if trainer.is_global_zero:
            report.add(row)
    if trainer.is_global_zero:
        report.finish()


def validated(trainer: pl.Trainer, task: Task, **given: Any) -> dict[str, float]:
    """All that a validation logs, by name; the task is on the trainer's device afterwards."""
    trainer.validate(task, **{**given, "verbose": False})
    task.to(trainer.strategy.root_device)  # from where the trainer has taken it
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def task_metric(trainer: pl.Trainer) -> str:
    """The metric by which the best checkpoint is kept; else the loss."""
    watched = [monitor for each in trainer.checkpoint_callbacks if (monitor := getattr(each, "monitor", None))]
    return str(watched[0]) if watched else "val/loss"
