"""What was measured by losses, as tables, CSV and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from lit_spectral import pages
from lit_spectral.analysis.by_loss import ByLoss
from lit_spectral.analysis.correlation import correlation
from lit_spectral.analysis.fisher import Overlap
from lit_spectral.analysis.interventions import WAYS, Intervention
from lit_spectral.analysis.measuring import place_of
from lit_spectral.comparison.results import write_rows

__all__ = ["fisher_figures", "fisher_rows", "intervention_figures", "intervention_rows", "loss_tables",
           "transfer_rows", "write_loss_tables"]  # fmt: skip


def transfer_rows(found: ByLoss) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: each adapter by the metric of every task (HiRA Fig. 9)."""
    head = ["adapter", *(f"{task}, {metric.removeprefix('val/')}" for task, metric in found.metrics.items())]
    rows = [[source, *(f"{logged[task][metric]:.4f}" for task, metric in found.metrics.items())]
            for source, logged in found.transfer.items()]  # fmt: skip
    return head, rows


def fisher_rows(found: ByLoss) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: mean overlap over maps by group, a row a pair of tasks."""
    rows = [[_pair(*names), *(f"{mean:.3f}" for mean in _means(each))] for names, each in _by_pair(found.overlaps)]
    return ["tasks", *(f"group {number}" for number in range(1, len(rows[0])))] if rows else [], rows


def intervention_rows(found: ByLoss) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: how the change of the loss goes with σ, by text or task and way (HiP-LoRA Table 3)."""
    rows = []
    for name, way, each in _by_way(found):
        sigma, changes = zip(*((one.component.sigma, one.change) for one in each), strict=True)
        both = [correlation(sigma, changes, ranks) for ranks in (False, True)]
        shown = way if way != "noise" else f"noise {found.noise:g}"
        rows.append([name, shown, str(len(each)), f"{statistics.fmean(changes):+.2g}", *(one.text for one in both)])
    return ["on", "way", "components", "mean change of the loss", "Pearson with σ", "Spearman with σ"], rows


def loss_tables(found: ByLoss) -> list[Table]:
    """Those that have rows, for the terminal."""
    titles = ("each adapter on each task", "overlap of Fisher information, by falling σ", "rank-1 interventions on W₀")
    shown = []
    for title, (head, rows) in zip(titles, _tables(found), strict=True):
        if rows:
            part = Table(title=title, title_justify="left")
            for number, cell in enumerate(head):
                part.add_column(escape(cell), justify="right" if number else "left", overflow="fold")
            for row in rows:
                part.add_row(*map(escape, row))
            shown.append(part)
    return shown


def write_loss_tables(found: ByLoss, folder: Path) -> list[str]:
    """`transfer.csv`, of adapters on tasks; `fisher.csv`, of pairs, maps and groups; and `interventions.csv`.

    Returns the names of those that have rows, which alone are written.
    """
    tables: dict[str, list[dict[str, Any]]] = {
        "transfer.csv": [
            {"source": source, "task": task, "metric": metric, "value": value}
            for source, tasks in found.transfer.items()
            for task, logged in tasks.items()
            for metric, value in logged.items()
        ],
        "fisher.csv": [
            {"one": each.one, "other": each.other, "module": each.path, **place_of(each.path)._asdict()}
            | {"group": number, "overlap": value}
            for each in found.overlaps
            for number, value in enumerate(each.groups, 1)
        ],
        "interventions.csv": [
            {"on": name, "module": one.component.path, **place_of(one.component.path)._asdict()}
            | {"number": one.component.number, "sigma": one.component.sigma, "way": one.way, "change": one.change}
            for name, each in found.interventions.items()
            for one in each
        ],
    }
    written = {name: rows for name, rows in tables.items() if rows}
    for name, rows in written.items():
        write_rows(folder / name, list(rows[0]), rows)
    return list(written)


def fisher_figures(found: ByLoss) -> list[Any]:
    """Mean overlap over maps by group, a line a pair; a task with itself dotted."""
    figure, (ax,) = pages.axes(1, 4.4, 3.1)
    for names, each in _by_pair(found.overlaps):
        means = _means(each)
        style = ":" if names[0] == names[1] else ".-"
        ax.plot(range(1, len(means) + 1), means, style, lw=1.2, label=pages.plain(_pair(*names)))
    _finish(ax, "overlap of Fisher information, mean over maps", "group of components; σ falls", "")
    ax.locator_params(axis="x", integer=True)
    ax.set_ylim(0, 1.02)
    return [figure]


def intervention_figures(found: ByLoss) -> list[Any]:
    """The change of the loss over σ, a dot a component, by text or task and way."""
    figures = []
    for name, way, each in _by_way(found):
        figure, (ax,) = pages.axes(1, 4.4, 3.1)
        ax.plot([one.component.sigma for one in each], [one.change for one in each], "o", ms=4)
        ax.axhline(0, color="0.6", lw=0.8, ls=":")
        _finish(ax, f"{way}: change of the loss on {name}", "σ", "")
        figures.append(figure)
    return figures


def _tables(found: ByLoss) -> list[tuple[list[str], list[list[str]]]]:
    return [transfer_rows(found), fisher_rows(found), intervention_rows(found)]


def _finish(ax: Any, title: str, across: str, up: str) -> None:
    ax.set_title(pages.plain(title), fontsize=10)
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=8, frameon=False)


def _pair(one: str, other: str) -> str:
    return f"{one}, its halves" if one == other else f"{one} and {other}"


def _by_pair(overlaps: Iterable[Overlap]) -> list[tuple[tuple[str, str], list[Overlap]]]:
    found: dict[tuple[str, str], list[Overlap]] = {}
    for each in overlaps:
        found.setdefault((each.one, each.other), []).append(each)
    # A task with itself comes last.
    return sorted(found.items(), key=lambda pair: pair[0][0] == pair[0][1])


def _means(overlaps: list[Overlap]) -> list[float]:
    return [float(value) for value in np.nanmean([each.groups for each in overlaps], axis=0)]


def _by_way(found: ByLoss) -> Iterator[tuple[str, str, list[Intervention]]]:
    for name, each in found.interventions.items():
        for way in WAYS:
            yield name, way, [one for one in each if one.way == way]
