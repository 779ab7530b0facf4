"""`lit-spectral forgetting-study`: which measures of adapters go with what their models have forgotten."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Iterator, Mapping
from html import escape as as_html
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from lit_spectral import pages
from lit_spectral.analysis.command import measured as analysed
from lit_spectral.analysis.command import parse
from lit_spectral.analysis.effects import effects
from lit_spectral.analysis.readings import RunReading
from lit_spectral.checkpoint import usable_device
from lit_spectral.errors import InputError, Parser, check_at_least
from lit_spectral.files import check_place, write_text
from lit_spectral.retention.base_model import original_weights
from lit_spectral.retention.retention import Retention
from lit_spectral.retention.texts import INPUTS, of_prompts
from lit_spectral.studies.finished import Adapter, named_folders
from lit_spectral.studies.forgetting import MEASURES, Point, Predictors, measures_of, points_in
from lit_spectral.studies.measured import Measured
from lit_spectral.tasks import CausalLM, Task

__all__ = ["run"]

log = logging.getLogger(__name__)

_ABOUT = """Spearman's correlation, over the adapters of a comparison, of each measure with how much worse than its
backbone the run's record has the model, and below it the 95 % interval of a bootstrap over adapters; "all" is of ranks
within each comparison, by the first of its columns. Adapters of one method or seed are not independent, of which the
interval takes no notice. ΔW's measures need no data; CKA, Procrustes residual and KL are on rows of the task's own
validation set, KL on a decoder's prompts. Shares are of ‖ΔW‖_F²."""


def run(args: list[str]) -> Path:
    """Measure what has not been measured yet, print the table, write page and CSV; returns the page's file.

    Raises:
        InputError: flags that can't be used, a folder with too few adapters. What was measured by then is kept.
    """
    given = _parse(args)
    folder = Path(given.output_folder)
    page = folder / "index.html"
    check_place(page, "forgetting-study: --output_folder")
    device = usable_device(given.device)
    found = {task: points_in(task, place) for task, place in given.folders.items()}
    study = Predictors(list(_points(found, given, device, Measured(folder / "measured.jsonl"))))
    console = Console()
    console.print(_table(study))
    study.write_csv(folder)
    write_text(page, _page(study, f"lit-spectral forgetting-study {shlex.join(args)}"))
    console.print(escape(f"tables: {folder / 'correlations.csv'}, adapters.csv"), soft_wrap=True)
    console.print(f"page: [bold]{escape(str(page))}[/bold]", soft_wrap=True)
    return page


class _OwnRows(Retention):
    """A task's own validation rows in the place of a text; of a decoder its prompts are what counts."""

    def __init__(self, task: Task, rows: list[dict[str, Tensor]]) -> None:
        super().__init__({task.backbone: ""})
        self._texts, self._originals = {task.backbone: [_own(task, row) for row in rows]}, original_weights(task)


def _own(task: Task, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a decoder with labels on its prompts, without prompts on what is trained; of others with none."""
    inputs = {key: batch[key] for key in INPUTS if key in batch}
    if not isinstance(task, CausalLM):
        return inputs
    asked = of_prompts(batch)
    return asked if (asked["labels"] != -100).any() else inputs | {"labels": batch["labels"]}


def _points(
    found: Mapping[str, Mapping[Adapter, Mapping[str, float]]],
    given: argparse.Namespace,
    device: torch.device,
    measured: Measured,
) -> Iterator[Point]:
    """Every adapter that has a ΔW, measured now or before."""
    how = {"top": given.top, "limit": given.limit}
    total, number = sum(map(len, found.values())), 0
    for adapters in found.values():
        for adapter, lost in adapters.items():
            number += 1
            had = measured.find([adapter], how)
            if had is None:
                try:
                    had = {adapter.task: _measure(adapter, given, device)}
                except InputError as error:
                    log.warning("forgetting-study: %s is left out: %s", adapter.name, error)
                    continue
                measured.add([adapter], how, had)
            (measures,) = had.values()
            print(f"{number} of {total}: {adapter.name}: ‖ΔW‖₂ {measures['spectral']:.4g}", flush=True)
            yield Point(adapter, measures, lost)


def _measure(adapter: Adapter, given: argparse.Namespace, device: torch.device) -> dict[str, float]:
    where = [f"--backbone={given.backbone}"] if given.backbone else []
    analysis, _ = analysed(parse([str(adapter.checkpoint), f"--top={given.top}", *where]))
    (maps,) = analysis.changes.values()
    reading = RunReading(adapter.name, adapter.folder, given.backbone, device, given.limit)
    rows: Any = reading.batches(given.batch_size)
    (effect,) = effects(reading.task, _OwnRows(reading.task, rows)).values()
    return measures_of(list(maps.values()), effect)


def _parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lit-spectral forgetting-study",
        description="Over the adapters that comparisons have trained: the rank correlation of every measure of an "
        "adapter, its norms, its place beside W₀, intruders, CKA, Procrustes residual and KL on its task's own rows, "
        "with what its run's record says was forgotten. What was measured is not measured again.",
        allow_abbrev=False,
    )
    about = "of a compare with --corpora or --sts, by what to call it; backbones may differ"
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER", help=about)
    about = "W₀'s leading singular directions, of which ρ_k is (%(default)s)"
    parser.add_argument("--top", type=int, default=32, metavar="K", help=about)
    about = "rows of each task's validation set on which states and predictions are compared (%(default)s)"
    parser.add_argument("--limit", type=int, default=64, metavar="N", help=about)
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="of them at a time (%(default)s)")
    parser.add_argument("--backbone", metavar="FOLDER", help="where the backbone lies, if not where it was")
    parser.add_argument("--device", metavar="NAME", help="(the first GPU, or the CPU)")
    parser.add_argument("--output_folder", default="runs/forgetting-study", metavar="FOLDER", help="(%(default)s)")
    given = parser.parse_args(args)
    check_at_least(1, top=given.top, limit=given.limit, batch_size=given.batch_size)
    given.folders = named_folders("forgetting-study", given.folders)
    return given


def _table(study: Predictors) -> Table:
    table = Table(caption="Spearman's correlation with what was lost, and its 95 % interval (bootstrap over adapters)")
    for number, heading in enumerate(study.headings()):
        table.add_column(escape(heading), justify="right" if number else "left", overflow="fold")
    for row in study.rows():
        table.add_row(*map(escape, row))
    return table


def _page(study: Predictors, command: str) -> str:
    title = f"What goes with forgetting: {', '.join(study.tasks)}"
    counts = ", ".join(f"{len(points)} adapters of {task}" for task, points in study.tasks.items())
    parts = [f'<p class="note">{as_html(_ABOUT)}</p>', pages.table(study.headings(), study.rows())]
    for task in study.tasks:
        parts += [f"<h2>{as_html(task)}</h2>", pages.panels(_figures(study, task))]
    parts.append(f"<h2>How to run it again</h2>\n<pre>{as_html(command)}</pre>")
    return pages.document(title, title, f"{counts} · {pages.when(pages.processor())}", "\n".join(parts))


def _figures(study: Predictors, task: str) -> Iterator[Any]:
    """What was lost over each measure, a dot an adapter, coloured by method."""
    points, kind = study.tasks[task], study.kinds[task][0]
    methods = list(dict.fromkeys(point.adapter.method for point in points))
    for measure, title in MEASURES.items():
        if all(point.measures[measure] != point.measures[measure] for point in points):
            continue
        figure, (ax,) = pages.axes(1, 4.4, 3.1)
        for number, method in enumerate(methods):
            theirs = [point for point in points if point.adapter.method == method]
            along, up = [point.measures[measure] for point in theirs], [point.lost.get(kind) for point in theirs]
            (dots,) = ax.plot(along, up, f"C{number % 10}o", ms=4)
            pages.tell(dots, method)
        ax.set_title(pages.plain(title), fontsize=10)
        ax.set_ylabel(pages.plain(f"lost, {kind}"))
        yield figure
