"""What runs came to, side by side: means, deviations and paired intervals."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from lit_spectral.comparison.variants import Variant

__all__ = ["Comparison", "Difference", "Measure", "Run", "paired_difference", "write_csv"]


@dataclass(frozen=True)
class Run:
    """A run that came to its end: its record is that of `RunRecord`."""

    variant: Variant
    seed: int
    record: dict[str, Any]
    folder: Path
    command: list[str]


class Measure(NamedTuple):
    """A number that every run has; `before` is that of the backbone, where it has one."""

    name: str
    title: str
    of: Callable[[dict[str, Any]], float | None]
    higher_is_better: bool | None = None
    before: float | None = None
    digits: int = 4

    def lost(self, value: float) -> float:
        """How much worse than before."""
        assert self.before is not None
        return self.before - value if self.higher_is_better else value - self.before

    def show(self, value: float) -> str:
        """With this measure's digits."""
        return f"{value:,.{self.digits}f}"


class Difference(NamedTuple):
    """Mean of paired differences and the 95 % interval of that mean; NaN from a single pair."""

    mean: float
    low: float
    high: float


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Mean of ours − theirs, pair by pair, with Student's 95 % interval."""
    from scipy.stats import t

    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return Difference(mean, math.nan, math.nan)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return Difference(mean, mean - half, mean + half)


class Comparison:
    """Runs of several variants, by the measures that all of them have.

    Args:
        compared: the variants, the first of which is what the others are compared with.
        runs: those that came to their end.
        metric: the task's, as it was logged.
        higher_is_better: whether more of it is better.
    """

    def __init__(self, compared: Sequence[Variant], runs: Sequence[Run], metric: str, higher_is_better: bool) -> None:
        done = {run.variant for run in runs}
        self.variants = [variant for variant in compared if variant in done]
        self.runs = list(runs)
        self.task = Measure(metric, metric.removeprefix("val/"), partial(_metric, metric), higher_is_better)
        loss = Measure("val/loss", "validation loss", partial(_metric, "val/loss"), False)
        self.retention = _retention(runs[0].record)
        self.norm = Measure("largest_norm", "largest ‖ΔW‖₂", lambda record: record.get("largest_norm"), digits=2)
        costs = [
            Measure("trainable_parameters", "parameters", lambda record: record["trainable_parameters"], digits=0),
            Measure("seconds_per_step", "s a step", lambda record: record["seconds_per_step"], digits=3),
            Measure("peak_memory", "memory, GB", lambda record: record["peak_memory"] / 1e9, digits=2),
        ]
        all_ = [self.task, *([loss] if metric != loss.name else []), *self.retention, self.norm, *costs]
        self.measures = [m for m in all_ if all(m.of(run.record) is not None for run in runs)]

    def of(self, variant: Variant) -> list[Run]:
        """The runs of one variant."""
        return [run for run in self.runs if run.variant == variant]

    def values(self, variant: Variant, measure: Measure) -> dict[int, float]:
        """From a seed to its value."""
        found = {run.seed: measure.of(run.record) for run in self.of(variant)}
        return {seed: value for seed, value in found.items() if value is not None}

    def difference(self, variant: Variant, measure: Measure) -> Difference | None:
        """From its reference, over the seeds that both have; None for the reference itself or without such seeds."""
        reference = variant.reference(self.variants)
        ours, theirs = self.values(variant, measure), self.values(reference, measure)
        seeds = sorted(ours.keys() & theirs.keys())
        if variant == reference or not seeds:
            return None
        return paired_difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])

    def share_lost(self, variant: Variant, measure: Measure) -> float | None:
        """What it lost of what the backbone had, over what its reference lost; None where that lost nothing."""
        ours, theirs = self.values(variant, measure), self.values(variant.reference(self.variants), measure)
        lost, reference = (measure.lost(statistics.fmean(v.values())) for v in (ours, theirs))
        return lost / reference if reference > 0 else None

    def headings(self) -> list[str]:
        """Of the columns of `rows`."""
        titles = []
        for m in self.measures:
            titles.append(m.title if m.before is None else f"{m.title} ({m.show(m.before)} before)")
            if m in self.retention:
                titles.append("lost, of the first's")
        return ["method", "runs", *titles]

    def rows(self) -> Iterable[list[str]]:
        """Of each variant, mean ± deviation and, on a line of its own, the paired difference and its interval."""
        for variant in self.variants:
            cells = [variant.name, str(len(self.of(variant)))]
            for m in self.measures:
                cells.append(self._cell(variant, m))
                if m in self.retention:
                    share = self.share_lost(variant, m)
                    cells.append("–" if share is None else f"{share:.0%}")
            yield cells

    def _cell(self, variant: Variant, m: Measure) -> str:
        values = list(self.values(variant, m).values())
        deviates = len(values) > 1 and m.name != "trainable_parameters"
        text = m.show(statistics.fmean(values)) + (f" ± {m.show(statistics.stdev(values))}" if deviates else "")
        difference = self.difference(variant, m) if m.higher_is_better is not None else None
        if difference is None:
            return text
        mean, low, high = (f"{value:+.{m.digits}f}" for value in difference)
        return f"{text}\n{mean}" + (f" [{low}, {high}]" if difference.low == difference.low else "")

    def table(self) -> Table:
        """For the terminal: a column a variant, since many measures are wider than a screen."""
        names, *lines = zip(self.headings(), *self.rows(), strict=True)
        table = Table(caption="± standard deviation over seeds; below, the paired difference from the first method "
                      "and its 95 % interval (Student's t)", show_lines=True)  # fmt: skip
        for number, name in enumerate(names):
            table.add_column("" if number == 0 else name, justify="right" if number else "left", overflow="fold")
        for line in lines:
            table.add_row(*line)
        return table


def write_csv(comparison: Comparison, folder: Path) -> None:
    """Writes `runs.csv`, everything that was recorded of each run, and `table.csv`, a row a variant."""
    flat = [_flat(run) for run in comparison.runs]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    with open(folder / "runs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(flat)
    summary = [_summary(comparison, variant) for variant in comparison.variants]
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(column for row in summary for column in row)))
        writer.writeheader()
        writer.writerows(summary)


def _summary(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    row: dict[str, Any] = {"method": variant.name, "runs": len(comparison.of(variant))}
    for m in comparison.measures:
        values = list(comparison.values(variant, m).values())
        row[m.name] = statistics.fmean(values)
        row[f"{m.name} deviation"] = statistics.stdev(values) if len(values) > 1 else ""
        if m.before is not None:
            row[f"{m.name} before"] = m.before
        difference = comparison.difference(variant, m) if m.higher_is_better is not None else None
        for part in Difference._fields if difference is not None else ():
            row[f"{m.name} difference {part}"] = getattr(difference, part)
    return row


def _flat(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"method": run.variant.name, "seed": run.seed}
    for key, value in run.record.items():
        row |= {f"{key}/{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return row


def _metric(name: str, record: dict[str, Any]) -> float | None:
    return record["metrics"].get(name)


def _retention(record: dict[str, Any]) -> list[Measure]:
    """For each text what says most of it: accuracy of masked tokens, or loss, or Spearman and drift of sentences."""
    found = record.get("retention", {})
    measures = []
    for text in dict.fromkeys(name.rpartition("/")[0] for name in found):
        kinds = [k for k in ("accuracy", "loss", "spearman", "drift") if f"{text}/{k}" in found]
        for kind in kinds[:1] if "accuracy" in kinds else kinds:
            name = f"{text}/{kind}"
            before = 0.0 if kind == "drift" else found[f"{text}/base_{kind}"]
            of = partial(lambda name, record: record.get("retention", {}).get(name), name)
            measures.append(
                Measure(f"retention/{name}", f"{text} {kind}", of, kind in {"accuracy", "spearman"}, before)
            )
    return measures
