"""The fronts of a comparison: every run at several scales of its ΔW, as a table, CSV and pictures."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from lit_spectral import pages
from lit_spectral.comparison.fronts import Interval, Reached, Settings, front, reached
from lit_spectral.comparison.results import Comparison, Measure, Run, write_rows
from lit_spectral.errors import InputError

__all__ = ["Fronts", "scales_of"]


class _Row(NamedTuple):
    """One method by one measure of retention."""

    measure: Measure
    method: str
    reached: Reached


def scales_of(file: Path) -> dict[float, dict[str, Any]]:
    """From a scale of ΔW to what `lit-spectral retain --scale …` measured of it, in the form of a run's record.

    Raises:
        InputError: the file is damaged.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        found = {}
        for row in rows:
            kept = {name.removeprefix("retention/"): value for name, value in row["measured"].items()}
            scale = 1.0 if row["repair"] is None else float(row["value"])
            found[scale] = {"metrics": row["measured"], "retention": kept}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged, so that nobody knows what was measured; remove it") from error
    return found


class Fronts:
    """Of each method its runs' scores and retention, at every scale, beside those of the first method.

    Args:
        comparison: whose runs were measured at scales of their ΔW; others are left out.
        within: how far below the reference's best score to look, in the metric's units, at least 0.
    """

    def __init__(self, comparison: Comparison, within: float) -> None:
        self.comparison, self._within = comparison, within
        self._runs = [run for run in comparison.runs if run.scales]
        having = {run.variant for run in self._runs}
        self.methods = list(dict.fromkeys(variant.arm for variant in comparison.variants if variant in having))
        self.measures = [measure for measure in comparison.retention if measure.before is not None]
        first = self.methods[0] if self.methods else ""
        self.rows = [
            _Row(measure, method, self._reached(measure, first, method))
            for measure in self.measures
            for method in self.methods
        ]

    def settings(self, method: str, measure: Measure, seeds: Sequence[int]) -> Settings:
        """Scores and retention of each variant of a method at each scale, over the seeds; more is better."""
        runs = {(run.variant.name, run.seed): run.scales or {} for run in self._of(method)}
        points = self._points(method)
        scores, kept = np.full((2, len(points), len(seeds)), math.nan)
        for row, (name, scale) in enumerate(points):
            for column, seed in enumerate(seeds):
                record = runs.get((name, seed), {}).get(scale)
                if record is not None:
                    scores[row, column] = _signed(self.comparison.task, record)
                    kept[row, column] = _signed(measure, record)
        return Settings(scores, kept)

    def table(self) -> Group:
        """For the terminal: a table a measure."""
        tables = []
        for measure in self.measures:
            table = Table(title=escape(f"fronts by {measure.title}"), caption=self.about())
            head, *body = self.cells(measure)
            for number, heading in enumerate(head):
                table.add_column(escape(heading), justify="right" if number else "left", overflow="fold")
            for row in body:
                table.add_row(*map(escape, row))
            tables.append(table)
        return Group(*tables)

    def cells(self, measure: Measure) -> list[list[str]]:
        """The headings, then a row a method."""
        first, task = self.methods[0], self.comparison.task
        near = f", less {self._within:g}" if self._within else ""
        head = ["method", f"{measure.title} at {first}'s best {task.title}{near}", f"lost, over {first}'s there",
                f"{task.title} where {first} keeps as much", "reached, of resamples"]  # fmt: skip
        body = []
        for _, method, found in (row for row in self.rows if row.measure == measure):
            kept, score = _unsigned(found.kept, measure), _unsigned(found.score_at_kept, task)
            texts = [_text(kept, measure.digits), _text(found.lost_over_reference, 2), _text(score, task.digits)]
            body.append([method, *texts, f"{found.share_reaching:.0%}"])
        return [head, *body]

    def about(self) -> str:
        """What the numbers are."""
        return (
            "Fronts over all settings and scales of ΔW, of means over seeds; in brackets 95 % of a paired bootstrap "
            "over the seeds; –: no setting reaches it."
        )

    def write_csv(self, file: Path) -> None:
        """A row for each method and measure, in the measures' own units."""
        rows = []
        for measure, method, found in self.rows:
            row: dict[str, Any] = {"method": method, "measure": measure.name, "seeds": len(self._seeds(method))}
            task = self.comparison.task
            for name, of in (("score", task), ("kept", measure), ("score_at_kept", task)):
                interval = _unsigned(getattr(found, name), of)
                row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
            lost = zip(("lost_over_reference", "lost_low", "lost_high"), found.lost_over_reference, strict=True)
            rows.append({**row, **dict(lost), "share_reaching": found.share_reaching})
        write_rows(file, list(rows[0]) if rows else [], rows)

    def draw(self, axes: Any, measure: Measure, colours: dict[str, str]) -> None:
        """Of each method the mean of every setting, and its front."""
        task = self.comparison.task
        for method in self.methods:
            settings = self.settings(method, measure, self._seeds(method))
            scores, kept = settings.means()
            having = [point for point, whole in zip(self._points(method), settings.whole, strict=True) if whole]
            for (name, scale), x, y in zip(having, *_shown(kept, measure, scores, task), strict=True):
                point = axes.scatter(x, y, s=12, alpha=0.35, linewidths=0, color=colours[method])
                where = f"{task.title} {task.show(y)}, {measure.title} {measure.show(x)}"
                pages.tell(point, f"{name}, {scale:g} ΔW: {where}")
            along, falling = front(scores, kept)
            lines = _shown(falling, measure, along, task)
            axes.plot(*lines, marker="o", ms=4, lw=1.5, color=colours[method], label=method)
        axes.legend(fontsize=8, frameon=False)

    def _reached(self, measure: Measure, first: str, method: str) -> Reached:
        seeds = [seed for seed in self._seeds(first) if seed in self._seeds(method)]
        having = [record for run in self._runs for record in (run.scales or {}).values()]
        assert measure.before is not None
        before = statistics.fmean(measure.before(record) for record in having if measure.of(record) is not None)
        whole = before if measure.higher_is_better else -before
        theirs, ours = (self.settings(each, measure, seeds) for each in (first, method))
        return reached(theirs, ours, whole, self._within)

    def _points(self, method: str) -> list[tuple[str, float]]:
        """Of a method: each variant's name, with each scale of ΔW."""
        names = dict.fromkeys(run.variant.name for run in self._of(method))
        scales = sorted({scale for run in self._of(method) for scale in run.scales or {}})
        return [(name, scale) for name in names for scale in scales]

    def _of(self, method: str) -> Iterator[Run]:
        return (run for run in self._runs if run.variant.arm == method)

    def _seeds(self, method: str) -> list[int]:
        return sorted({run.seed for run in self._of(method)})


def _signed(measure: Measure, record: dict[str, Any]) -> float:
    """So that more is better; NaN of what wasn't measured."""
    value = measure.of(record)
    return math.nan if value is None else value if measure.higher_is_better else -value


def _unsigned(interval: Interval, measure: Measure) -> Interval:
    if measure.higher_is_better:
        return interval
    return Interval(-interval.value, -interval.high, -interval.low)


def _text(interval: Interval, digits: int) -> str:
    value, low, high = (f"{each:.{digits}f}" for each in interval)
    if math.isnan(interval.value):
        return "–"
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def _shown(kept: Any, measure: Measure, scores: Any, task: Measure) -> tuple[Any, Any]:
    return kept if measure.higher_is_better else -kept, scores if task.higher_is_better else -scores
