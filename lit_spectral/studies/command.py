"""`lit-spectral merge-study`: what becomes of each task when adapters that were trained apart are merged."""

from __future__ import annotations

import argparse
import json
import logging
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from lit_spectral.checkpoint import usable_device
from lit_spectral.errors import InputError, Parser, check_at_least, nearest
from lit_spectral.files import check_place, write_text
from lit_spectral.studies.bench import Bench
from lit_spectral.studies.finished import (
    Adapter,
    Chosen,
    Metric,
    check_backbones,
    choose,
    finished,
    metric_of,
    named,
    named_folders,
)
from lit_spectral.studies.measured import Measured
from lit_spectral.studies.merges import Draw, Score, draws
from lit_spectral.studies.page import write_page, write_plot
from lit_spectral.studies.results import Results, Row, name_of
from lit_spectral.updates import exports
from lit_spectral.updates.merge_rules import RULES
from lit_spectral.updates.update import Update

__all__ = ["run"]

log = logging.getLogger(__name__)

MEAN = "mean"


def run(args: list[str]) -> Path:
    """Measure what has not been measured yet, print tables, write page, CSV and PNG; returns the page's file.

    Raises:
        InputError: flags that can't be used, folders that can't be compared, an adapter of another backbone. What was
            measured by then is kept.
    """
    given = _parse(args)
    folder = Path(given.output_folder)
    page = folder / "index.html"
    check_place(page, "merge-study: --output_folder")
    found = {task: finished(task, place) for task, place in given.folders.items()}
    chosen = choose(found, given.methods)
    metrics = {task: metric_of(_of_task(chosen, task), given.metrics.get(task)) for task in found}
    if len({metric.higher_is_better for metric in metrics.values()}) > 1:
        log.warning("merge-study: mean |Δ| is over scores and losses alike; give --metric for tasks of one kind")
    planned = draws(chosen.seeds, given.sizes or range(2, len(found) + 1), given.samples, given.seed)
    device = usable_device(given.device)
    check_backbones(chosen.adapters.values())
    study = _Study(chosen, Measured(folder / "measured.jsonl"), Bench(given.backbone, device), given.weight, given.keep)
    rows = list(study.rows(planned, given.rules, metrics))
    results = Results(rows, chosen.methods, given.rules, metrics, given.taus)
    console = Console()
    console.print(results.table())
    results.write_csv(folder)
    write_plot(results, folder / "merges.png")
    title = f"Merging {', '.join(found)}: {', '.join(chosen.methods)}"
    write_text(page, write_page(results, title, f"lit-spectral merge-study {shlex.join(args)}"))
    console.print(escape(f"tables: {folder / 'table.csv'}, merges.csv; merges.png"), soft_wrap=True)
    console.print(f"page: [bold]{escape(str(page))}[/bold]", soft_wrap=True)
    return page


@dataclass
class _Study:
    """What is measured, what has been, and how."""

    chosen: Chosen
    measured: Measured
    bench: Bench
    weight: float | None
    keep: Path | None

    def rows(self, planned: Sequence[Draw], rules: Sequence[str], metrics: Mapping[str, Metric]) -> Iterator[Row]:
        """Every merge, measured now or before; each adapter alone before the first that it is in."""
        total, number = len(self.chosen.methods) * len(rules) * len(planned), 0
        for method in self.chosen.methods:
            for rule in rules:
                for draw in planned:
                    number += 1
                    adapters = [self.chosen.adapters[task, method, seed] for task, seed in draw]
                    before = {each.task: self._alone(each)[each.task] for each in adapters}
                    after = self._merged(adapters, rule, draw)
                    scores = {
                        task: Score(before[task][name], after[task][name], higher)
                        for task, (name, higher) in metrics.items()
                        if task in after
                    }
                    told = ", ".join(f"{task} {score.before:.4f} → {score.after:.4f}" for task, score in scores.items())
                    print(f"{number} of {total}: {method}, {rule}, {name_of(draw)}: {told}", flush=True)
                    yield Row(method, rule, draw, scores)
            self.bench.forget()

    def _alone(self, adapter: Adapter) -> dict[str, dict[str, float]]:
        found = self.measured.find([adapter], {})
        if found is None:
            found = {adapter.task: self.bench.alone(adapter)}
            self.measured.add([adapter], {}, found)
        return found

    def _merged(self, adapters: list[Adapter], rule: str, draw: Draw) -> dict[str, dict[str, float]]:
        weight = 1 / len(adapters) if self.weight is None else self.weight
        how = {"rule": rule, "weight": weight, **RULES[rule].settings}
        found = self.measured.find(adapters, how)
        lacking = self._lacking(adapters, rule, draw)
        if found is None or lacking:
            updates = self.bench.merged(adapters, rule, weight)
            if found is None:
                found = {each.task: self.bench.within(each, updates[each.task]) for each in adapters}
                self.measured.add(adapters, how, found)
            for task, place in lacking.items():
                _keep(updates[task], place)
        return found

    def _lacking(self, adapters: Sequence[Adapter], rule: str, draw: Draw) -> dict[str, Path]:
        """Where a merge is to be written, by task, and isn't yet; InputError where one of other adapters is."""
        if self.keep is None:
            return {}
        weighted = f"{rule}_{MEAN}" if self.weight is None else f"{rule}_{self.weight:g}"
        folder = self.keep / weighted / adapters[0].folder.parent.name / name_of(draw)
        noted, of = folder / "adapters.json", json.dumps({each.task: each.digest for each in adapters})
        if noted.exists() and noted.read_text(encoding="utf-8") != of:
            raise InputError(
                f"merge-study: --keep: {folder} has a merge of other adapters, which were trained since; remove it or "
                "give another folder"
            )
        write_text(noted, of)
        return {each.task: folder / each.task for each in adapters if not (folder / each.task).exists()}


def _keep(update: Update, place: Path) -> None:
    """As factors, or where a change has none as a model."""
    exports.write(update, place, "peft" if all(delta.is_thin for delta in update.changes.values()) else "merged")


def _of_task(chosen: Chosen, task: str) -> list[Adapter]:
    return [adapter for (of, _, _), adapter in chosen.adapters.items() if of == task]


def _parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lit-spectral merge-study",
        description="Merge adapters that comparisons have trained, one a task, in all ways or in some, the same for "
        "every method, and measure each task before and after: Δ, MergeFail, and differences from the first method. "
        "What was measured is not measured again.",
        allow_abbrev=False,
    )
    about = "of a finished compare, one a task, by the task's name; all of one backbone and the same methods"
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER", help=about)
    about = "the first is what the others are compared with (all that every task has)"
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=about)
    parser.add_argument("--rules", nargs="+", default=["add"], metavar="RULE", help=f"{', '.join(RULES)} (add)")
    about = "of every ΔW, or mean, for 1 over their number (%(default)s)"
    parser.add_argument("--weight", default="1", metavar="W", help=about)
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help="tasks in a merge (2 to all of them)")
    parser.add_argument("--samples", type=int, metavar="N", help="merges of each size, drawn by --seed (all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (%(default)s)")
    about = "a merge fails where a task keeps less than this share of its score, in (0, 1] (0.8 0.9 0.95)"
    parser.add_argument("--tau", nargs="+", type=float, default=[0.8, 0.9, 0.95], metavar="T", help=about)
    about = "of a task, as it is logged (what its comparison went by)"
    parser.add_argument("--metric", nargs="+", action="extend", default=[], metavar="TASK=NAME", help=about)
    about = "write every merge there too, as factors of peft's or, where it is dense, as a model; none is otherwise"
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help=about)
    parser.add_argument("--backbone", metavar="FOLDER", help="where the backbone lies, if not where it was")
    parser.add_argument("--device", metavar="NAME", help="(the first GPU, or the CPU)")
    parser.add_argument("--output_folder", default="runs/merge-study", metavar="FOLDER", help="(%(default)s)")
    given = parser.parse_args(args)
    given.folders = named_folders("merge-study", given.folders)
    given.metrics = named("merge-study", given.metric, "TASK=NAME")
    for task in given.metrics:
        if task not in given.folders:
            raise InputError(f"merge-study: --metric: there is no task {task}{nearest(task, given.folders)}")
    for rule in given.rules:
        if rule not in RULES:
            raise InputError(f"merge-study: there is no rule {rule}{nearest(rule, RULES)}")
    given.rules = list(dict.fromkeys(given.rules))
    given.methods, given.sizes = (list(dict.fromkeys(each or ())) for each in (given.methods, given.sizes))
    for tau in given.tau:
        if not 0 < tau <= 1:
            raise InputError(f"merge-study: --tau is a share of a score, above 0 and at most 1, not {tau:g}")
    given.taus = sorted(set(given.tau))
    check_at_least(1, samples=given.samples)
    given.weight = _weight(given.weight)
    return given


def _weight(text: str) -> float | None:
    """None for the mean."""
    if text == MEAN:
        return None
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or not weight:
        raise InputError(f"merge-study: --weight is {MEAN}, or a finite number other than 0, not {text}")
    return weight
