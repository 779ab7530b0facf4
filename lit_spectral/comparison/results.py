"""What runs came to, side by side: means, deviations and paired intervals."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from lit_spectral.comparison.variants import Variant
from lit_spectral.files import write_text

__all__ = [
    "Comparison",
    "Difference",
    "Measure",
    "Run",
    "deviation",
    "more_is_better",
    "paired_difference",
    "side_by_side",
    "write_csv",
    "write_rows",
]


@dataclass(frozen=True)
class Run:
    """A run that came to its end: its record is that of `RunRecord`; `scales` has the like at scales of its ΔW."""

    variant: Variant
    seed: int
    record: dict[str, Any]
    folder: Path
    command: list[str]
    scales: dict[float, dict[str, Any]] | None = None


class Measure(NamedTuple):
    """A number that runs have, None where one lacks it; `before` is the backbone's, of what the backbone has too."""

    name: str
    title: str
    of: Callable[[dict[str, Any]], float | None]
    higher_is_better: bool | None = None
    before: Callable[[dict[str, Any]], float] | None = None
    digits: int = 4

    def lost(self, record: dict[str, Any]) -> float | None:
        """How much worse than the backbone."""
        value = self.of(record)
        if value is None:
            return None
        assert self.before is not None
        change = value - self.before(record)
        return -change if self.higher_is_better else change

    def show(self, value: float) -> str:
        """With this measure's digits."""
        return f"{value:,.{self.digits}f}"


def more_is_better(metric: str, modes: Sequence[str]) -> bool:
    """Whether more of a metric is better: as a config's ModelCheckpoints on it have their mode, else by its name."""
    return modes[0] == "max" if modes else not metric.endswith(("loss", "perplexity"))


class Difference(NamedTuple):
    """Mean of paired differences and the 95 % interval of that mean; NaN from one pair, or where one isn't finite."""

    mean: float
    low: float
    high: float


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Mean of ours − theirs, pair by pair, with Student's 95 % interval."""
    from scipy.stats import t

    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if not all(map(math.isfinite, differences)):
        return Difference(math.nan, math.nan, math.nan)
    mean, count = statistics.fmean(differences), len(differences)
    half = float(t.ppf(0.975, count - 1)) * deviation(differences) / math.sqrt(count) if count > 1 else math.nan
    return Difference(mean, mean - half, mean + half)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; NaN of one value, or where one is not finite."""
    usable = len(values) > 1 and all(math.isfinite(value) for value in values)
    return statistics.stdev(values) if usable else math.nan


class Comparison:
    """Runs of several variants, by the measures that any of them has.

    Args:
        compared: the variants, also of runs that failed; who is compared with whom is theirs to say.
        runs: those that came to their end.
        metric: the task's, as it was logged.
        higher_is_better: whether more of it is better.
        others: more measures of the task.
    """

    def __init__(
        self,
        compared: Sequence[Variant],
        runs: Sequence[Run],
        metric: str,
        higher_is_better: bool,
        others: Sequence[Measure] = (),
    ) -> None:
        done = {run.variant for run in runs}
        self.compared = list(compared)
        self.variants = [variant for variant in compared if variant in done]
        references = [variant.reference(compared) for variant in self.variants]
        found = dict.fromkeys(r for v, r in zip(self.variants, references, strict=True) if r != v)
        self.references = list(found) or [self.compared[0]]
        self.runs = list(runs)
        self.task = Measure(metric, metric.removeprefix("val/"), partial(_metric, metric), higher_is_better)
        loss = Measure("val/loss", "validation loss", partial(_metric, "val/loss"), False)
        self.retention = _retention([run.record for run in runs])
        self.norm = Measure("largest_norm", "largest ‖ΔW‖₂", lambda record: record.get("largest_norm"), digits=2)
        costs = [
            Measure("trainable_parameters", "parameters", lambda record: record["trainable_parameters"], digits=0),
            Measure("seconds_per_step", "s a step", lambda record: record["seconds_per_step"], digits=3),
            Measure("peak_memory", "memory, GB", lambda record: record["peak_memory"] / 1e9, digits=2),
        ]
        all_ = [self.task, *others, *([loss] if metric != loss.name else []), *self.retention, self.norm, *costs]
        self.measures = [m for m in all_ if any(m.of(run.record) is not None for run in runs)]

    def of(self, variant: Variant) -> list[Run]:
        """The runs of one variant."""
        return [run for run in self.runs if run.variant == variant]

    def values(self, variant: Variant, measure: Measure) -> dict[int, float]:
        """From a seed to its value."""
        found = {run.seed: measure.of(run.record) for run in self.of(variant)}
        return {seed: value for seed, value in found.items() if value is not None}

    def difference(self, variant: Variant, measure: Measure) -> Difference | None:
        """From its reference, over the seeds that both have; None for the reference itself or without such seeds."""
        pairs = self._pairs(variant, measure.of)
        if variant == variant.reference(self.compared) or not pairs:
            return None
        return paired_difference(*zip(*pairs, strict=True))

    def share_lost(self, variant: Variant, measure: Measure) -> float | None:
        """What it lost of what the backbone had, over what its reference lost; None where that lost nothing."""
        pairs = self._pairs(variant, measure.lost)
        lost, reference = sum(ours for ours, _ in pairs), sum(theirs for _, theirs in pairs)
        return lost / reference if reference > 0 else None

    def _pairs(self, variant: Variant, of: Callable[[dict[str, Any]], float | None]) -> list[tuple[float, float]]:
        """A number of this variant and of its reference, of each seed for which both have it."""
        theirs = {run.seed: of(run.record) for run in self.of(variant.reference(self.compared))}
        found = [(of(run.record), theirs.get(run.seed)) for run in self.of(variant)]
        return [(ours, other) for ours, other in found if ours is not None and other is not None]

    def headings(self) -> list[str]:
        """Of the columns of `rows`."""
        titles = []
        whose = self.references[0].name if len(self.references) == 1 else "the reference"
        for m in self.measures:
            having = [run.record for run in self.runs if m.of(run.record) is not None]
            before = {m.show(m.before(record)) for record in having} if m.before is not None else set()
            titles.append(f"{m.title} ({before.pop()} before)" if len(before) == 1 else m.title)
            if m in self.retention:
                titles.append(f"lost, of {whose}'s")
        return ["method", "runs", *titles]

    def rows(self) -> Iterable[list[str]]:
        """Of each variant, mean ± deviation and, on a line of its own, the paired difference and its interval.

        Where not all are compared with the same, the name has a line of its own for what with.
        """
        for variant in self.variants:
            reference = variant.reference(self.compared)
            named = len(self.references) > 1 and reference != variant
            cells = [variant.name + (f"\nfrom {reference.name}" if named else ""), str(len(self.of(variant)))]
            for m in self.measures:
                cells.append(self._cell(variant, m))
                if m in self.retention:
                    share = self.share_lost(variant, m)
                    cells.append("–" if share is None else f"{share:.0%}")
            yield cells

    def _cell(self, variant: Variant, m: Measure) -> str:
        values = list(self.values(variant, m).values())
        if not values:
            return "–"
        deviates = len(values) > 1 and m.name != "trainable_parameters"
        text = m.show(statistics.fmean(values)) + (f" ± {m.show(deviation(values))}" if deviates else "")
        difference = self.difference(variant, m) if m.higher_is_better is not None else None
        if difference is None:
            return text
        mean, low, high = (f"{value:+.{m.digits}f}" for value in difference)
        return f"{text}\n{mean}" + (f" [{low}, {high}]" if difference.low == difference.low else "")

    def table(self) -> Group:
        """For the terminal: a column a variant, since many measures are wider than a screen, and four at a time."""
        tables = side_by_side(self.headings(), list(self.rows()))
        tables[-1].caption = (
            f"± standard deviation over seeds; below, the paired difference from {self.compared_with()} "
            "and its 95 % interval (Student's t)"
        )
        return Group(*tables)

    def compared_with(self) -> str:
        """What differences are from, in words."""
        return self.references[0].name if len(self.references) == 1 else "what stands under the name"


def side_by_side(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> list[Table]:
    """Tables for the terminal with a column for each row, four at a time, and a line for each heading but the first."""
    tables = []
    for start in range(0, len(rows), 4):
        names, *lines = zip(headings, *rows[start : start + 4], strict=True)
        table = Table(title=title, show_lines=True)
        for number, name in enumerate(names):
            heading = "" if number == 0 else escape(name)
            table.add_column(heading, justify="right" if number else "left", overflow="fold")
        for line in lines:
            table.add_row(*map(escape, line))
        tables.append(table)
    return tables


def write_csv(comparison: Comparison, folder: Path) -> None:
    """Writes `runs.csv`, everything that was recorded of each run, and `table.csv`, a row a variant."""
    flat = [_flat(run) for run in comparison.runs]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    write_rows(folder / "runs.csv", columns, flat)
    summary = [_summary(comparison, variant) for variant in comparison.variants]
    write_rows(folder / "table.csv", list(dict.fromkeys(column for row in summary for column in row)), summary)


def write_rows(file: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Rows as CSV, by their columns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


def _summary(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    runs = comparison.of(variant)
    row: dict[str, Any] = {"method": variant.name, "runs": len(runs)}
    row["compared with"] = variant.reference(comparison.compared).name
    for m in comparison.measures:
        values = list(comparison.values(variant, m).values())
        if not values:
            continue
        row |= {m.name: statistics.fmean(values), f"{m.name} deviation": deviation(values)}
        if m.before is not None:
            having = [run.record for run in runs if m.of(run.record) is not None]
            row[f"{m.name} before"] = statistics.fmean(map(m.before, having))
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


# From what a text is measured by to what it is of the backbone; a drift starts at 0.
_BEFORE = {"accuracy": "base_accuracy", "loss": "base_loss", "forgetting_loss": "base_entropy",
           "spearman": "base_spearman", "drift": None}  # fmt: skip


def _retention(records: Sequence[dict[str, Any]]) -> list[Measure]:
    """For each text what says most of it: losses, the accuracy of masked tokens, or Spearman and drift of sentences."""
    found = dict.fromkeys(name for record in records for name in record.get("retention", {}))
    measures = []
    for text in dict.fromkeys(name.rpartition("/")[0] for name in found):
        kinds = [kind for kind in _BEFORE if f"{text}/{kind}" in found]
        if "accuracy" in kinds:  # of masked tokens, whose loss adds nothing to it
            kinds = [kind for kind in kinds if kind != "loss"]
        for kind in kinds:
            of, original = partial(_kept, f"{text}/{kind}"), _BEFORE[kind]
            before = partial(_kept, f"{text}/{original}") if original else _nothing
            title = f"{text} {kind.replace('_', ' ')}"
            better = kind in {"accuracy", "spearman"}
            measures.append(Measure(f"retention/{text}/{kind}", title, of, better, before, _digits(map(of, records))))
    return measures


def _digits(values: Iterable[float | None]) -> int:
    """Four decimals, or where all values are so small, as drifts may be, that little would be left, two digits."""
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    return max(4, 1 - math.floor(math.log10(largest))) if largest else 4
