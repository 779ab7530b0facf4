"""What sequences came to: their matrices of scores, and the comparison of those that came to their end."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from lit_spectral.comparison.results import Comparison, Measure, Run, write_rows
from lit_spectral.comparison.variants import Variant
from lit_spectral.continual.scores import Scores, backward_transfer, forgetting, forward_transfer, mean_final
from lit_spectral.continual.stages import BEFORE, JOINT, Stage

__all__ = ["Sequenced", "comparison_of", "matrix", "matrix_table", "row_names", "shown", "write_scores"]

# All that was logged, by stage.
Logged = Mapping[str, Mapping[str, float]]


@dataclass
class Sequenced:
    """A sequence of stages as far as it came, of one variant and seed."""

    variant: Variant
    seed: int
    how: str
    folder: Path
    before: Logged = field(default_factory=dict)  # of the backbone alone, where its tasks need no head
    rows: list[Logged] = field(default_factory=list)  # after each stage
    joint: Logged = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)  # of the stages' runs
    commands: list[list[str]] = field(default_factory=list)

    def named_rows(self, stages: Sequence[Stage]) -> dict[str, Logged]:
        """All that was measured, by what it was measured after."""
        named = {f"after {stage.name}": row for stage, row in zip(stages, self.rows, strict=False)}
        return {name: row for name, row in ({BEFORE: self.before} | named | {JOINT: self.joint}).items() if row}


def matrix(rows: Sequence[Logged], stages: Sequence[Stage]) -> Scores:
    """Scores (rows, stages) by each stage's own metric; NaN where there is none."""
    return np.array([[row.get(s.name, {}).get(s.metric, math.nan) for s in stages] for row in rows], dtype=np.float64)


def row_names(stages: Sequence[Stage]) -> list[str]:
    """Of all rows that there may be."""
    return [BEFORE, *(f"after {stage.name}" for stage in stages), JOINT]


def shown(found: Sequence[Sequenced], stages: Sequence[Stage]) -> dict[str, Scores]:
    """From a row's name to its scores (stages,), means over the sequences that have it."""
    means = {}
    for name in row_names(stages):
        having = [rows[name] for each in found if name in (rows := each.named_rows(stages))]
        if having:
            means[name] = matrix(having, stages).mean(0)
    return means


def matrix_table(title: str, found: Sequence[Sequenced], stages: Sequence[Stage]) -> Table:
    """The matrix of one variant for the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for stage in stages:
        table.add_column(f"{stage.name}\n{stage.metric.removeprefix('val/')}", justify="right")
    for name, scores in shown(found, stages).items():
        table.add_row(name, *(as_text(score) for score in scores))
    return table


def as_text(score: float) -> str:
    """A score, or what stands for none."""
    return "–" if math.isnan(score) else f"{score:.4f}"


def comparison_of(compared: Sequence[Variant], found: Sequence[Sequenced], stages: Sequence[Stage]) -> Comparison:
    """Of the sequences that came to their end: final scores, what was forgotten, and what `compare` shows of runs."""
    metrics = {stage.metric for stage in stages}
    name = f"mean final {metrics.pop().removeprefix('val/') if len(metrics) == 1 else 'score'}"
    higher = stages[0].higher_is_better
    others = [
        Measure("forgetting", "forgetting", partial(_told, "forgetting"), False),
        Measure("backward transfer", "backward transfer", partial(_told, "backward transfer"), True),
        Measure("forward transfer", "forward transfer", partial(_told, "forward transfer"), True),
        Measure("joint", f"{name}, joint training", partial(_told, "joint"), higher),
    ]
    for stage in stages:
        title = f"final {stage.metric.removeprefix('val/')} on {stage.name}"
        others.append(Measure(title, title, partial(_told, title), higher))
    runs = [_run(each, stages, name) for each in found if len(each.rows) == len(stages)]
    return Comparison(compared, runs, name, higher, others)


def _run(each: Sequenced, stages: Sequence[Stage], name: str) -> Run:
    """A sequence as a run, whose record is that of its end."""
    scores, higher, last = matrix(each.rows, stages), [stage.higher_is_better for stage in stages], each.records[-1]
    told = {"forgetting": forgetting(scores, higher), "backward transfer": backward_transfer(scores, higher)}
    if each.before:
        (before,) = matrix([each.before], stages)
        told["forward transfer"] = forward_transfer(scores, before, higher)
    if each.joint:
        told["joint"] = mean_final(matrix([each.joint], stages))
    finals = zip(stages, scores[-1], strict=True)
    told |= {f"final {stage.metric.removeprefix('val/')} on {stage.name}": float(score) for stage, score in finals}
    record = {
        "metrics": {name: mean_final(scores)},
        "continual": {key: value for key, value in told.items() if not math.isnan(value)},
        "retention": last.get("retention", {}),
        "trainable_parameters": last["trainable_parameters"],
        "seconds_per_step": statistics.fmean(record["seconds_per_step"] for record in each.records),
        "peak_memory": max(record["peak_memory"] for record in each.records),
        "device": last["device"],
        "how": each.how,
    }
    if each.how == "chain" and "largest_norm" in last:  # of others it is the last stage's adapter alone
        record["largest_norm"] = last["largest_norm"]
    return Run(each.variant, each.seed, record, each.folder, [])


def _told(name: str, record: dict[str, Any]) -> float | None:
    found: float | None = record["continual"].get(name)
    return found


def write_scores(found: Sequence[Sequenced], stages: Sequence[Stage], file: Path) -> None:
    """Write all that was measured as CSV: a row for each metric on each stage after each."""
    columns = ["method", "how", "seed", "after", "on", "metric", "value"]
    rows = [
        dict(zip(columns, [each.variant.name, each.how, each.seed, after, on, metric, value], strict=True))
        for each in found
        for after, row in each.named_rows(stages).items()
        for on, logged in row.items()
        for metric, value in logged.items()
    ]
    write_rows(file, columns, rows)
