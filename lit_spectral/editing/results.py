"""What a study of edits has come to: success, locality, and differences between methods, with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Group

from lit_spectral.comparison.results import Comparison, Difference, Run, side_by_side, write_rows
from lit_spectral.comparison.variants import Variant
from lit_spectral.datamodules.edits import Edit, Probe
from lit_spectral.editing.measuring import Answered, Edited, Measured
from lit_spectral.scoring.answers import score_opening
from lit_spectral.studies.merges import bootstrap

__all__ = ["Adapted", "Measure", "Results", "success"]

Numbers = npt.NDArray[np.float64]


class Success(NamedTuple):
    """Of one edit, each 0 or 1: whether the new answer is said, is held likelier than the old one, or either."""

    said: float
    preferred: float
    either: float


def success(edit: Edit, found: Edited) -> Success:
    """HiP-LoRA's two ways for an edit to succeed (appendix C.4), and its measure, which is either of them."""
    said, preferred = score_opening(found.text, edit.new), found.new > found.old
    return Success(float(said), float(preferred), float(said or preferred))


@dataclass(frozen=True)
class Adapted:
    """An adapter that has been measured: its variant and seed, the first edit that it was taught, and its run."""

    variant: Variant
    seed: int
    first: int
    measured: Measured
    run: Run


class Measure(NamedTuple):
    """A number for each edit, or for each unrelated prompt, NaN where it is not measured."""

    name: str
    title: str
    of: Callable[[Variant], Numbers]
    scale: float = 100.0  # of what is shown: shares in points of 100

    def show(self, value: float, sign: str = "") -> str:
        """With this measure's digits."""
        return f"{self.scale * value:{sign}.{1 if self.scale == 100 else 3}f}"


class Results:
    """The adapters of a study beside their backbone.

    Args:
        compared: the variants, also of runs that failed.
        edits: all of them, E.
        probes: unrelated prompts with their answers, P.
        before: the backbone alone, as each variant has it.
        adapted: what has been measured.
    """

    def __init__(
        self,
        compared: Sequence[Variant],
        edits: Sequence[Edit],
        probes: Sequence[Probe],
        before: Mapping[Variant, Measured],
        adapted: Sequence[Adapted],
    ) -> None:
        self.edits, self.probes, self.before, self.adapted = edits, probes, before, adapted
        self.comparison = Comparison(compared, [each.run for each in adapted], "val/loss", False)
        self.variants = self.comparison.variants
        self._known: dict[tuple[str, ...], Difference] = {}

    @cached_property
    def measures(self) -> list[Measure]:
        """Success first, then each way to it, each category, and locality."""
        found = [
            Measure("success", "edit success, %", self._success("either")),
            Measure("said", "new answer said, %", self._success("said")),
            Measure("preferred", "new answer likelier, %", self._success("preferred")),
        ]
        for kind, inside in _kinds(self.edits).items():
            found.append(Measure(f"success {kind}", f"success, {kind}, %", _only(inside, found[0].of)))
        if self.probes:
            accuracy = Measure("accuracy change", "unrelated: accuracy, change in points", self._accuracy)
            likelihood = Measure(
                "log-probability change", "unrelated: log-probability, change in nats", self._likelihood, scale=1.0
            )
            for measure in (accuracy, likelihood):
                found.append(measure)
                for kind, inside in _kinds(self.probes).items():
                    name = f"{measure.name} {kind}"
                    title = measure.title.replace("unrelated", f"unrelated, {kind}", 1)
                    found.append(measure._replace(name=name, title=title, of=_only(inside, measure.of)))
        return found

    def of(self, variant: Variant) -> list[Adapted]:
        """The adapters of one variant."""
        return [each for each in self.adapted if each.variant == variant]

    def value(self, measure: Measure, variant: Variant) -> Difference:
        """Mean over what has been measured, and its 95 % interval over edits or prompts."""
        return self._sure((measure.name, variant.name), measure.of(variant))

    def difference(self, measure: Measure, variant: Variant) -> Difference | None:
        """From its reference, edit by edit or prompt by prompt; None for the reference itself, or without any pair."""
        reference = variant.reference(self.comparison.compared)
        if variant == reference or reference not in self.variants:
            return None
        found = self._sure((measure.name, variant.name, ""), measure.of(variant) - measure.of(reference))
        return None if math.isnan(found.mean) else found

    def accuracy_before(self) -> float:
        """Share of the unrelated prompts that the backbone answers as it should."""
        return float(np.mean(_right(self.probes, self.before[self.variants[0]].unrelated)))

    def headings(self) -> list[str]:
        """Of the columns of `rows`."""
        titles = [measure.title for measure in self.measures]
        if self.probes:
            place = [measure.name for measure in self.measures].index("accuracy change")
            titles[place] += f" ({100 * self.accuracy_before():.1f} % before)"
        others = [m.title if m != self.comparison.task else "loss of the new answers" for m in self.comparison.measures]
        return ["method", "edits", *titles, *others]

    def rows(self) -> Iterable[list[str]]:
        """Of each variant, means with their intervals; below, the difference from the reference with its interval."""
        for variant in self.variants:
            reference = variant.reference(self.comparison.compared)
            named = len(self.comparison.references) > 1 and reference != variant
            cells = [variant.name + (f"\nfrom {reference.name}" if named else ""), str(self._count(variant))]
            for measure in self.measures:
                text = _told(measure, self.value(measure, variant))
                difference = self.difference(measure, variant)
                cells.append(text + (f"\n{_told(measure, difference, '+')}" if difference is not None else ""))
            for other in self.comparison.measures:
                values = [value for run in self.comparison.of(variant) if (value := other.of(run.record)) is not None]
                cells.append(other.show(statistics.fmean(values)) if values else "–")
            yield cells

    def caption(self) -> str:
        """What the table shows."""
        told = "Means, and 95 % intervals by a bootstrap over edits or unrelated prompts."
        if len(self.variants) > 1:
            told += f" Below: the paired difference from {self.comparison.compared_with()}."
        return told

    def table(self) -> Group:
        """For the terminal."""
        tables = side_by_side(self.headings(), list(self.rows()))
        tables[-1].caption = self.caption()
        return Group(*tables)

    def write_csv(self, folder: Path) -> None:
        """`table.csv`, a row a method; `edits.csv` and `unrelated.csv`, a row for each prompt of each adapter."""
        table = [self._summary(variant) for variant in self.variants]
        write_rows(folder / "table.csv", list(dict.fromkeys(column for row in table for column in row)), table)
        taught, others = list(self._edit_rows()), list(self._probe_rows())
        write_rows(folder / "edits.csv", list(taught[0]), taught)
        if others:
            write_rows(folder / "unrelated.csv", list(others[0]), others)

    def _summary(self, variant: Variant) -> dict[str, Any]:
        row: dict[str, Any] = {"method": variant.name, "edits": self._count(variant)}
        row |= {"accuracy before": self.accuracy_before()} if self.probes else {}
        for measure in self.measures:
            found = [("", self.value(measure, variant)), (" difference", self.difference(measure, variant))]
            for suffix, numbers in found:
                for part in Difference._fields if numbers is not None else ():
                    row[f"{measure.name}{suffix} {part}"] = getattr(numbers, part)
        for other in self.comparison.measures:
            values = [value for run in self.comparison.of(variant) if (value := other.of(run.record)) is not None]
            row |= {other.name: statistics.fmean(values)} if values else {}
        return row

    def _edit_rows(self) -> Iterable[dict[str, Any]]:
        for each in self.adapted:
            for number, found in enumerate(each.measured.edits, each.first):
                edit = self.edits[number]
                old = self.before[each.variant].edits[number]
                row = {"method": each.variant.name, "seed": each.seed, "edit": number, **edit._asdict()}
                yield row | {"text": found.text, "text before": old.text, **success(edit, found)._asdict(),
                             "log p(new)": found.new, "log p(old)": found.old, "log p(new) before": old.new,
                             "log p(old) before": old.old}  # fmt: skip

    def _probe_rows(self) -> Iterable[dict[str, Any]]:
        for each in self.adapted:
            for probe, found, old in zip(
                self.probes, each.measured.unrelated, self.before[each.variant].unrelated, strict=True
            ):
                row = {"method": each.variant.name, "seed": each.seed, "first edit": each.first, **probe._asdict()}
                yield row | {"text": found.text, "text before": old.text, "log p": found.log_probability,
                             "log p before": old.log_probability}  # fmt: skip

    def _count(self, variant: Variant) -> int:
        """Edits that any adapter was taught."""
        return int(np.isfinite(self._success("either")(variant)).sum())

    def _success(self, way: str) -> Callable[[Variant], Numbers]:
        def of(variant: Variant) -> Numbers:
            found: list[list[float]] = [[] for _ in self.edits]
            for each in self.of(variant):
                for number, edited in enumerate(each.measured.edits, each.first):
                    found[number].append(getattr(success(self.edits[number], edited), way))
            return np.array([statistics.fmean(values) if values else math.nan for values in found])

        return of

    def _accuracy(self, variant: Variant) -> Numbers:
        """(P,) after − before, mean over adapters."""
        after = np.mean([_right(self.probes, each.measured.unrelated) for each in self.of(variant)], axis=0)
        change: Numbers = after - _right(self.probes, self.before[variant].unrelated)
        return change

    def _likelihood(self, variant: Variant) -> Numbers:
        """(P,) after − before, mean over adapters."""
        after = np.mean([[a.log_probability for a in each.measured.unrelated] for each in self.of(variant)], axis=0)
        change: Numbers = after - np.array([a.log_probability for a in self.before[variant].unrelated])
        return change

    def _sure(self, key: tuple[str, ...], values: Numbers) -> Difference:
        if key not in self._known:
            known = values[~np.isnan(values)].tolist()
            nothing = Difference(math.nan, math.nan, math.nan)
            self._known[key] = bootstrap([[value] for value in known]) if known else nothing
        return self._known[key]


def _right(probes: Sequence[Probe], found: Sequence[Answered]) -> Numbers:
    """(P,) whether each answer is given, 0 or 1."""
    pairs = zip(probes, found, strict=True)
    return np.array([score_opening(answered.text, probe.answer) for probe, answered in pairs], dtype=np.float64)


def _kinds(rows: Sequence[Edit] | Sequence[Probe]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which are of each category, where there are several."""
    kinds = sorted({row.category for row in rows})
    named = np.array([row.category for row in rows])
    return {kind: named == kind for kind in kinds} if len(kinds) > 1 else {}


def _only(inside: npt.NDArray[np.bool_], of: Callable[[Variant], Numbers]) -> Callable[[Variant], Numbers]:
    return lambda variant: np.where(inside, of(variant), math.nan)


def _told(measure: Measure, found: Difference, sign: str = "") -> str:
    sign = sign or ("+" if "change" in measure.name else "")
    mean, low, high = (measure.show(value, sign) for value in found)
    return mean + (f" [{low}, {high}]" if found.low == found.low else "")
