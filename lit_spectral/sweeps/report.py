"""What a sweep has come to: a line a value while it runs, then one table, one plot, and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_spectral.evaluation.provenance import provenance
from lit_spectral.files import check_place, write_text, written
from lit_spectral.methods import Given
from lit_spectral.retention.measures import BASE, told
from lit_spectral.sweeps.sweep import Row
from lit_spectral.tasks import Task

__all__ = ["Report"]

# What of retention is drawn.
DRAWN = ("/forgetting_loss", "/drift")
NORM = "largest ‖ΔW‖₂"


class Report:
    """The rows of a sweep as they come.

    Args:
        file: of the JSON; the plot lies beside it, as `.png`.
        settings: of the command.
        task: that is swept, of the method `Given`.
        metric: of the task, that is drawn where it was measured.
        total: how many rows there will be.

    Raises:
        InputError: a file that can't be written.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any], task: Task, metric: str, total: int) -> None:
        check_place(file, "sweep: its JSON")
        check_place(file.with_suffix(".png"), "sweep: its plot")
        self._file, self._settings, self._task, self._metric, self._total = file, settings, task, metric, total
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Take a row, and show it."""
        self._rows.append(row)
        told = ", ".join(f"{_heading(name)} {row.measured[name]:.4g}" for name in _shown(row.measured))
        print(f"{len(self._rows)} of {self._total}: {row.label}: {told}", flush=True)

    def finish(self) -> None:
        """Print the table, and write the files."""
        Console().print(_table(self._rows))
        method = self._task.method
        assert isinstance(method, Given)
        rows = [{**row._asdict(), "measured": row.measured, "label": row.label} for row in self._rows]
        report = {"settings": self._settings, "adapter": dict(method.read().origin), "model": self._task._identity()}
        write_text(self._file, json.dumps(report | {"rows": rows} | provenance(), indent=1, default=str))
        plot = self._file.with_suffix(".png")
        _plot(self._rows, plot, self._metric)
        print(f"sweep: {self._file}, {plot}")


def _is_retention(name: str) -> bool:
    return name.startswith("retention/")


def _shown(measured: Mapping[str, float]) -> list[str]:
    """Names of what is told of a row: of retention neither the backbone's part nor losses that have another name."""
    ends = [name.rpartition("/")[2] for name in measured]
    named = zip(measured, ends, strict=True)
    return [name for name, end in named if not (_is_retention(name) and (end.startswith("base_") or end == "loss"))]


def _heading(name: str) -> str:
    return name.removeprefix("retention/").replace("_", " ")


def _table(rows: Sequence[Row]) -> Table:
    """A line a row, after one of what the backbone is known to do."""
    names = _shown(rows[0].measured)
    table = Table()
    table.add_column("ΔW", overflow="fold")
    for heading in ("‖ΔW‖₂", *map(_heading, names)):
        table.add_column(escape(heading), justify="right", overflow="fold")
    if any(map(_is_retention, names)):
        table.add_row("backbone", "0", *(_of_backbone(name, rows[0].measured) for name in names))
    for row in rows:
        table.add_row(escape(row.label), f"{row.spectral_norm:.4g}", *(told(row.measured[name]) for name in names))
    return table


def _of_backbone(name: str, measured: Mapping[str, float]) -> str:
    if not _is_retention(name):
        return ""
    text, _, measure = name.rpartition("/")
    return told(measured[f"{text}/{BASE[measure]}"]) if measure in BASE else "0"


def _plot(rows: Sequence[Row], file: Path, metric: str) -> None:
    """A panel for each measure of what is kept, a curve for each repair, each point labelled with its value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kept = [name for name in rows[0].measured if _is_retention(name) and name.endswith(DRAWN)]
    by_task = metric in rows[0].measured
    panels = [(name, metric) for name in kept] if by_task else [(NORM, name) for name in kept]
    panels = panels or [(NORM, metric if by_task else next(iter(rows[0].measured)))]
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    for axes, (across, up) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        x, y = ([row.spectral_norm if name == NORM else row.measured[name] for row in rows] for name in (across, up))
        for repair in dict.fromkeys(row.repair for row in rows if row.repair is not None):
            those = [number for number, row in enumerate(rows) if row.repair == repair]
            axes.plot([x[n] for n in those], [y[n] for n in those], marker=".", linewidth=1, label=repair)
            for n in those:
                axes.annotate(rows[n].text, (x[n], y[n]), xytext=(4, 4), textcoords="offset points", fontsize="x-small")
        axes.plot(x[:1], y[:1], "k*", label=rows[0].label)
        axes.set(xlabel=_heading(across), ylabel=_heading(up))
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.25)
        axes.legend(fontsize="small")
    with written(file) as scratch:
        FigureCanvasAgg(figure).print_figure(scratch, format="png", dpi=150)
