"""What a study of merges has come to: Before, After and Δ of each task, failed merges, and differences, as a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group

from lit_spectral.comparison.results import Difference, side_by_side, write_rows
from lit_spectral.studies.finished import Metric
from lit_spectral.studies.merges import Draw, Score, bootstrap

__all__ = ["Measure", "Results", "Row"]


class Row(NamedTuple):
    """One merge, and of each task in it the score before and after."""

    method: str
    rule: str
    draw: Draw
    scores: Mapping[str, Score]


class Measure(NamedTuple):
    """A number of every merge's tasks, or one of the merge as a whole, of which less is better."""

    name: str
    title: str
    of: Callable[[Row], list[float]]
    share: bool = True

    def show(self, value: float, sign: str = "") -> str:
        """With this measure's digits: shares in points of 100."""
        return f"{100 * value:{sign}.1f}" if self.share else f"{value:{sign}.4f}"


class Results:
    """The merges of a study, the same ones of every method by every rule.

    Args:
        rows: all of them.
        methods: the first is what the others are compared with.
        rules: of merging.
        metrics: of each task.
        taus: thresholds of failing, each in (0, 1].
    """

    def __init__(
        self,
        rows: Sequence[Row],
        methods: Sequence[str],
        rules: Sequence[str],
        metrics: Mapping[str, Metric],
        taus: Sequence[float],
    ) -> None:
        self.rows, self.methods, self.rules, self.metrics, self.taus = rows, methods, rules, metrics, taus
        self.sizes = sorted({len(row.draw) for row in rows})
        self.measures = [Measure("mean |change|", "mean |Δ|", _changes, share=False)]
        self.measures += [self.merge_fail(tau) for tau in taus]
        self.measures += [
            Measure(f"ScoreFail {tau:g}", f"scores failed, τ = {tau:g}, %", _score_fails(tau)) for tau in taus
        ]

    @staticmethod
    def merge_fail(tau: float) -> Measure:
        """HiP-LoRA's: whether any task of a merge keeps less than τ of its own score."""
        return Measure(f"MergeFail {tau:g}", f"MergeFail, τ = {tau:g}, %", _merge_fails(tau))

    def of(self, rule: str, method: str, size: int | None = None) -> list[Row]:
        """Of so many tasks, or of any number."""
        return [r for r in self.rows if (r.rule, r.method) == (rule, method) and size in {None, len(r.draw)}]

    def value(self, measure: Measure, rows: Iterable[Row]) -> float:
        """Mean over merges of the mean over their tasks."""
        return statistics.fmean(statistics.fmean(measure.of(row)) for row in rows)

    def difference(self, measure: Measure, rule: str, method: str, size: int | None = None) -> Difference | None:
        """From the first method, merge by merge; None for that itself."""
        if method == self.methods[0]:
            return None
        theirs = {row.draw: measure.of(row) for row in self.of(rule, self.methods[0], size)}
        pairs = ((measure.of(row), theirs[row.draw]) for row in self.of(rule, method, size))
        return bootstrap([[a - b for a, b in zip(*pair, strict=True)] for pair in pairs])

    def task(self, rule: str, method: str, task: str, size: int | None = None) -> Score | None:
        """Means of a task's scores over the merges that it is in; None where it is in none."""
        scores = [row.scores[task] for row in self.of(rule, method, size) if task in row.scores]
        if not scores:
            return None
        before, after = (statistics.fmean(getattr(score, when) for score in scores) for when in ("before", "after"))
        return Score(before, after, self.metrics[task].higher_is_better)

    def headings(self) -> list[str]:
        """Of the columns of `cells`."""
        tasks = [f"{task}, {metric.name.removeprefix('val/')}" for task, metric in self.metrics.items()]
        return ["method", "merges", *tasks, *(measure.title for measure in self._shown())]

    def cells(self, rule: str) -> Iterable[list[str]]:
        """A row a method; below its figures Δ, or the difference from the first method with its interval."""
        for method in self.methods:
            rows = self.of(rule, method)
            cells = [method, str(len(rows))]
            for task in self.metrics:
                score = self.task(rule, method, task)
                told = "–" if score is None else f"{score.before:.4f} → {score.after:.4f}\n{score.change:+.4f}"
                cells.append(told)
            for measure in self._shown():
                text = measure.show(self.value(measure, rows))
                difference = self.difference(measure, rule, method)
                if difference is not None:
                    mean, low, high = (measure.show(value, "+") for value in difference)
                    text += f"\n{mean}" + (f" [{low}, {high}]" if difference.low == difference.low else "")
                cells.append(text)
            yield cells

    def _shown(self) -> list[Measure]:
        return [measure for measure in self.measures if not measure.name.startswith("ScoreFail")]

    def caption(self) -> str:
        """What the table shows."""
        told = "Means over merges of before → after, below Δ."
        if len(self.methods) > 1:
            told += f" Of the others below: the difference from {self.methods[0]} and its 95 % interval (bootstrap)."
        return told

    def table(self) -> Group:
        """For the terminal: for each rule a column a method, four at a time."""
        tables = [
            table
            for rule in self.rules
            for table in side_by_side(self.headings(), list(self.cells(rule)), f"merged by {rule}")
        ]
        tables[-1].caption = self.caption()
        return Group(*tables)

    def write_csv(self, folder: Path) -> None:
        """`merges.csv`, a row a task of a merge, and `table.csv`, a row for each rule, method and number of tasks."""
        merges = [
            {
                "rule": row.rule,
                "method": row.method,
                "merge": name_of(row.draw),
                "tasks": len(row.draw),
                "task": task,
                "metric": self.metrics[task].name,
                "before": score.before,
                "after": score.after,
                "change": score.change,
                "drop": score.drop,
            }
            for row in self.rows
            for task, score in row.scores.items()
        ]
        write_rows(folder / "merges.csv", list(merges[0]), merges)
        sizes = [None, *(self.sizes if len(self.sizes) > 1 else [])]
        table = [self._summary(rule, m, size) for rule in self.rules for m in self.methods for size in sizes]
        write_rows(folder / "table.csv", list(dict.fromkeys(column for row in table for column in row)), table)

    def _summary(self, rule: str, method: str, size: int | None) -> dict[str, Any]:
        rows = self.of(rule, method, size)
        row: dict[str, Any] = {"rule": rule, "method": method, "tasks": size or "all", "merges": len(rows)}
        for task in self.metrics:
            score = self.task(rule, method, task, size)
            if score is not None:
                row |= {f"{task} before": score.before, f"{task} after": score.after, f"{task} change": score.change}
        for measure in self.measures:
            row[measure.name] = self.value(measure, rows)
            difference = self.difference(measure, rule, method, size)
            for part in Difference._fields if difference is not None else ():
                row[f"{measure.name} difference {part}"] = getattr(difference, part)
        return row


def name_of(draw: Draw) -> str:
    """Of a merge: its tasks with their seeds."""
    return "+".join(f"{task}_{seed}" for task, seed in draw)


def _changes(row: Row) -> list[float]:
    return [abs(score.change) for score in row.scores.values()]


def _merge_fails(tau: float) -> Callable[[Row], list[float]]:
    return lambda row: [float(any(score.fails(tau) for score in row.scores.values()))]


def _score_fails(tau: float) -> Callable[[Row], list[float]]:
    return lambda row: [float(score.fails(tau)) for score in row.scores.values()]
