"""`lit-spectral retain` with a sweep: what is kept at every value, and beside it what the task has gained."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from lit_spectral.checkpoint import load_given, log_folder
from lit_spectral.errors import InputError
from lit_spectral.lightning_cli import SpectralCLI
from lit_spectral.precision import advise_bf16
from lit_spectral.retention.retention import Retention
from lit_spectral.sweeps.report import Report
from lit_spectral.sweeps.sweep import sweep
from lit_spectral.sweeps.unrun import unrun
from lit_spectral.sweeps.validation import task_metric, validated
from lit_spectral.sweeps.values import Sweep

__all__ = ["run_sweeps"]


def run_sweeps(
    given: argparse.Namespace,
    sweeps: Sequence[Sweep],
    retention: Retention,
    device: torch.device,
    rounded: AbstractContextManager[Any],
) -> Path:
    """Measure every value, print a table, write JSON and plot; returns the JSON's file.

    Args:
        given: of `retain`.
        sweeps: that it asks for.
        retention: of its texts, not prepared.
        device: where to measure.
        rounded: in what precision, a context that may be entered often.

    Raises:
        InputError: as `load_given`, `sweep` and `Retention.prepare`; no config to validate by.
    """
    cli = None if given.validate is None else _config_of(given, device)
    task: Any = load_given(given.checkpoint, given.backbone).to(device) if cli is None else cli.model
    unprepared = [retention]

    def measure() -> dict[str, float]:
        found = {} if cli is None else validated(cli.trainer, task, datamodule=cli.datamodule)
        while unprepared:  # the model is there by now, if a config has told which
            if not given.bf16:
                advise_bf16(task.model, device, "--bf16")
            unprepared.pop().prepare(task)
        with rounded:
            return found | {f"retention/{name}": value for name, value in retention.measure(task).items()}

    file = Path(given.output_path) if given.output_path else log_folder(given.checkpoint) / "sweep.json"
    settings = {name: value for name, value in vars(given).items() if value is not None} | {"device": str(device)}
    metric = "" if cli is None else task_metric(cli.trainer)
    report = Report(file, settings, task, metric, 1 + sum(len(each.values) for each in sweeps))
    for row in sweep(task, sweeps, measure):
        report.add(row)
    report.finish()
    return file


def _config_of(given: argparse.Namespace, device: torch.device) -> SpectralCLI:
    """Task, data and trainer of the config to validate by: a run's own, unless one is given."""
    config = given.validate or str(log_folder(given.checkpoint) / "config.yaml")
    if not given.validate and not Path(config).is_file():
        raise InputError(f"retain: --validate finds no {config}; give --validate CONFIG, of the data to validate on")
    return unrun(config, given.checkpoint, given.backbone, device)
