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

from rich.markup import escape
from rich.table import Table

from lit_spectral.comparison.variants import Variant

__all__ = ["Comparison", "Difference", "Measure", "Run", "deviation", "paired_difference", "write_csv"]


@dataclass(frozen=True)
class Run:
    """A run that came to its end: its record is that of `RunRecord`."""

    variant: Variant
    seed: int
    record: dict[str, Any]
    folder: Path
    command: list[str]


class Measure(NamedTuple):
    """A number that every run has; `before` is the backbone's, of what the backbone has too."""

    name: str
    title: str
    of: Callable[[dict[str, Any]], float | None]
    higher_is_better: bool | None = None
    before: Callable[[dict[str, Any]], float] | None = None
    digits: int = 4

    def lost(self, record: dict[str, Any]) -> float:
        """How much worse than the backbone."""
        value = self.of(record)
        assert self.before is not None
        assert value is not None
        change = value - self.before(record)
        return -change if self.higher_is_better else change

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
    half = float(t.ppf(0.975, count - 1)) * deviation(differences) / math.sqrt(count) if count > 1 else math.nan
    return Difference(mean, mean - half, mean + half)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; NaN of one value, or where one is not finite."""
    usable = len(values) > 1 and all(math.isfinite(value) for value in values)
    return statistics.stdev(values) if usable else math.nan


class Comparison:
    """Runs of several variants, by the measures that all of them have.

    Args:
        compared: the variants, also of runs that failed; who is compared with whom is theirs to say.
        runs: those that came to their end.
        metric: the task's, as it was logged.
        higher_is_better: whether more of it is better.
    """

    def __init__(self, compared: Sequence[Variant], runs: Sequence[Run], metric: str, higher_is_better: bool) -> None:
        done = {run.variant for run in runs}
        self.compared = list(compared)
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
        pairs = self._pairs(variant)
        if variant == variant.reference(self.compared) or not pairs:
            return None
        values = [(measure.of(ours), measure.of(theirs)) for ours, theirs in pairs]
        return paired_difference(*zip(*values, strict=True))

    def share_lost(self, variant: Variant, measure: Measure) -> float | None:
        """What it lost of what the backbone had, over what its reference lost; None where that lost nothing."""
        pairs = self._pairs(variant)
        lost = sum(measure.lost(ours) for ours, _ in pairs)
        reference = sum(measure.lost(theirs) for _, theirs in pairs)
        return lost / reference if reference > 0 else None

    def _pairs(self, variant: Variant) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Records of this variant and of its reference, seed by seed."""
        theirs = {run.seed: run.record for run in self.of(variant.reference(self.compared))}
        return [(run.record, theirs[run.seed]) for run in self.of(variant) if run.seed in theirs]

    def headings(self) -> list[str]:
        """Of the columns of `rows`."""
        titles = []
        for m in self.measures:
            before = {m.show(m.before(run.record)) for run in self.runs} if m.before is not None else set()
            titles.append(f"{m.title} ({before.pop()} before)" if len(before) == 1 else m.title)
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
        text = m.show(statistics.fmean(values)) + (f" ± {m.show(deviation(values))}" if deviates else "")
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
            heading = "" if number == 0 else escape(name)
            table.add_column(heading, justify="right" if number else "left", overflow="fold")
        for line in lines:
            table.add_row(*(escape(cell) for cell in line))
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
    runs = comparison.of(variant)
    row: dict[str, Any] = {"method": variant.name, "runs": len(runs)}
    row["compared with"] = variant.reference(comparison.compared).name
    for m in comparison.measures:
        values = list(comparison.values(variant, m).values())
        row |= {m.name: statistics.fmean(values), f"{m.name} deviation": deviation(values)}
        if m.before is not None:
            row[f"{m.name} before"] = statistics.fmean(m.before(run.record) for run in runs)
            row[f"{m.name} share lost"] = comparison.share_lost(variant, m)
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
    found: float | None = record["metrics"].get(name)
    return found


def _kept(name: str, record: dict[str, Any]) -> Any:
    return record.get("retention", {}).get(name)


def _nothing(record: dict[str, Any]) -> float:
    return 0.0


def _retention(record: dict[str, Any]) -> list[Measure]:
    """For each text what says most of it: accuracy of masked tokens, or loss, or Spearman and drift of sentences."""
    found = record.get("retention", {})
    measures = []
    for text in dict.fromkeys(name.rpartition("/")[0] for name in found):
        kinds = [k for k in ("accuracy", "loss", "spearman", "drift") if f"{text}/{k}" in found]
        for kind in kinds[:1] if "accuracy" in kinds else kinds:
            name = f"{text}/{kind}"
            of = partial(_kept, name)
            before = partial(_kept, f"{text}/base_{kind}") if kind != "drift" else _nothing
            measures.append(
                Measure(f"retention/{name}", f"{text} {kind}", of, kind in {"accuracy", "spearman"}, before)
            )
    return measures
