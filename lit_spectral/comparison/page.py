"""The comparison as one HTML page that needs nothing else, not even a network."""

from __future__ import annotations

import io
import platform
import shlex
import statistics
from collections.abc import Sequence
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_spectral.comparison.front_view import Fronts
from lit_spectral.comparison.fronts import front
from lit_spectral.comparison.results import Comparison, Measure, Run, deviation
from lit_spectral.comparison.variants import Variant
from lit_spectral.evaluation.provenance import provenance

__all__ = ["write_page"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c2430 }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto } svg { width: 100%; height: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; white-space: nowrap }
th { border-bottom: 2px solid #1c2430; vertical-align: bottom; white-space: normal; min-width: 5rem }
td { border-bottom: 1px solid #d5dae1; vertical-align: top }
th, td { padding: .4rem .8rem; text-align: right } th:first-child, td:first-child { text-align: left }
td small, p.note { color: #5c6675 } td small { display: block }
i { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .5em }
pre { background: #f3f5f8; padding: .8rem; overflow-x: auto; font-size: .8rem }
"""


def write_page(comparison: Comparison, fronts: Fronts | None, title: str, command: str) -> str:
    """The page's HTML: the table, fronts or task against retention, curves over training, how to run it again."""
    colours = {variant: f"C{number % 10}" for number, variant in enumerate(comparison.variants)}
    seeds = sorted({run.seed for run in comparison.runs})
    today = date.today()
    about = f"{today.day} {today:%B %Y} · {_machine(comparison)} · " + ", ".join(
        f"{name} {number}" for name, number in provenance()["versions"].items() if name in {"lit-spectral", "torch"}
    )
    reference = escape(comparison.compared_with())
    commands = "\n".join(escape(f"lit-spectral {shlex.join(run.command)}") for run in comparison.runs)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}: {escape(", ".join(v.name for v in comparison.variants))}</title>
<style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p class="note">{len(comparison.runs)} runs, seeds {", ".join(map(str, seeds))} · {escape(about)}</p>
{_table(comparison, colours)}
<p class="note">Mean ± standard deviation over seeds. Below: paired difference from {reference} and its 95 % interval
(Student's t). Task and retention are those of the model at the end of training.</p>
{_trade_off(comparison, colours) if fronts is None else _of_fronts(fronts)}
{_curves(comparison, colours)}
<h2>How to run it again</h2>
<pre>{escape(command)}</pre>
<details><summary>Each run's own command</summary><pre>{commands}</pre></details>
</body></html>
"""


def _machine(comparison: Comparison) -> str:
    processor = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    devices = sorted({run.record["device"] for run in comparison.runs})
    return ", ".join(processor if device == "cpu" else device for device in devices)


def _table(comparison: Comparison, colours: dict[Variant, str]) -> str:
    from matplotlib.colors import to_hex

    head = "".join(f"<th>{escape(heading)}</th>" for heading in comparison.headings())
    body = []
    for variant, cells in zip(comparison.variants, comparison.rows(), strict=True):
        shown = []
        for cell in cells:
            value, _, beneath = cell.partition("\n")
            shown.append(escape(value) + (f"<small>{escape(beneath)}</small>" if beneath else ""))
        shown[0] = f'<i style="background:{to_hex(colours[variant])}"></i>{shown[0]}'
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in shown) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _trade_off(comparison: Comparison, colours: dict[Variant, str]) -> str:
    """What was learned against what was forgotten, or against ‖ΔW‖₂ where nobody looked at retention."""
    across = [m for m in comparison.retention or [comparison.norm] if m in comparison.measures]
    drawn = []
    for start in range(0, len(across), 2):
        pair = across[start : start + 2]
        figure, axes = _figure(len(pair), 8.5 if len(pair) == 1 else 12.0, 4.4)
        for ax, measure in zip(axes, pair, strict=True):
            _fronts(ax, comparison, measure, colours)
        drawn.append(_svg(figure))
    note = '<p class="note">Dashed: the means that no other beats in both.</p>'
    return f"<h2>What was learned, and what was forgotten</h2>{note}{''.join(drawn)}" if drawn else ""


def _of_fronts(fronts: Fronts) -> str:
    """What each method reaches over its settings and scales of ΔW: a picture and a table for each measure."""
    colours = {method: f"C{number % 10}" for number, method in enumerate(fronts.methods)}
    parts = ["<h2>What each method reaches</h2>", f'<p class="note">{escape(fronts.about())}</p>']
    for measure in fronts.measures:
        figure, (ax,) = _figure(1, 8.5, 4.4)
        fronts.draw(ax, measure, colours)
        worse = f"({'more' if measure.higher_is_better else 'less'} is better)"
        ax.set(xlabel=_text(f"{measure.title} {worse}"), ylabel=_text(_better(fronts.comparison.task)))
        head, *body = fronts.cells(measure)
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body)
        heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        parts.append(_svg(figure))
        table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        parts.append(f'<div class="wide">{table}</div>')
    return "".join(parts)


def _fronts(ax: Any, comparison: Comparison, across: Measure, colours: dict[Variant, str]) -> None:
    """Each run, each variant's mean with its deviation, and through the best of them the Pareto front."""
    means = []
    for variant in comparison.variants:
        found = [(_worse(across, run), comparison.task.of(run.record)) for run in comparison.of(variant)]
        points = [(x, y) for x, y in found if x is not None and y is not None]
        if not points:
            continue
        (x, dx), (y, dy) = (_spread(values) for values in zip(*points, strict=True))
        means.append((x, y))
        ax.scatter(*zip(*points, strict=True), s=14, alpha=0.4, color=colours[variant], linewidths=0)
        ax.errorbar(x, y, dy, dx, fmt="o", ms=8, color=colours[variant], capsize=0)
        ax.annotate(_text(variant.name), (x, y), xytext=(7, 6), textcoords="offset points", fontsize=9)
    lost, scores = np.array(means).reshape(-1, 2).T
    sign = 1 if comparison.task.higher_is_better else -1
    along, falling = front(sign * scores, -lost)
    ax.plot(-falling, sign * along, ls="--", lw=1, color="0.6", zorder=0)
    ax.margins(0.12)  # room for the names
    what = f"loss of {across.title}" if across.before is not None else across.title
    ax.set(xlabel=_text(f"{what} (less is better)"), ylabel=_text(_better(comparison.task)))


def _curves(comparison: Comparison, colours: dict[Variant, str]) -> str:
    """Over training, of the runs whose folders are there."""
    scalars = {run.folder: _scalars(run.folder) for run in comparison.runs}
    tags = ["train/loss", "val/loss", comparison.task.name, "spectral_norm/max", "spectral_norm_estimate/max"]
    tags += [m.name for m in comparison.retention]
    present = [tag for tag in dict.fromkeys(tags) if any(tag in found for found in scalars.values())]
    drawn = []
    for start in range(0, len(present), 2):
        pair = present[start : start + 2]
        figure, axes = _figure(2, 10.5, 3.4)
        for ax, tag in zip(axes, pair, strict=False):
            for variant in comparison.variants:
                lines = [scalars[run.folder][tag] for run in comparison.of(variant) if tag in scalars[run.folder]]
                _band(ax, lines, colours[variant], _text(variant.name), smooth=tag == "train/loss")
            ax.set(title=_text(tag), xlabel="optimizer step")
        axes[0].legend(fontsize=8, frameon=False)
        for ax in axes[len(pair) :]:
            ax.set_visible(False)
        drawn.append(_svg(figure))
    note = '<p class="note">Mean over seeds; bands from the lowest to the highest.</p>'
    return f"<h2>Over training</h2>{note}{''.join(drawn)}" if drawn else ""


def _band(ax: Any, lines: list[dict[int, float]], colour: str, label: str, smooth: bool) -> None:
    """Mean, lowest and highest at the steps that all lines have."""
    steps = sorted(set.intersection(*(set(line) for line in lines))) if lines else []
    if not steps:
        return
    series = [_smoothed([line[step] for step in steps]) if smooth else [line[step] for step in steps] for line in lines]
    at_step = list(zip(*series, strict=True))
    ax.plot(steps, [statistics.fmean(v) for v in at_step], color=colour, label=label, lw=1.5)
    if len(series) > 1:
        lowest, highest = [min(v) for v in at_step], [max(v) for v in at_step]
        ax.fill_between(steps, lowest, highest, color=colour, alpha=0.15, lw=0)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about ten values; single batches say little."""
    found, mean = [], values[0]
    for value in values:
        mean += (value - mean) / 10
        found.append(mean)
    return found


def _scalars(folder: Path) -> dict[str, dict[int, float]]:
    """From a tag of TensorBoard's files to its values by step; where a step was repeated, the later one's."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}  # a run that only records have
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: {p.step: p.value for p in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def _figure(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import rc_context

    text = io.StringIO()
    # Text stays text: it can be searched, and the file is a tenth of the size. The date would change every file.
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _text(text: str) -> str:
    """What matplotlib shows as it is; between two dollars it would read mathematics."""
    return text.replace("$", r"\$")


def _worse(measure: Measure, run: Run) -> float | None:
    return measure.lost(run.record) if measure.before is not None else measure.of(run.record)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    spread = deviation(values)
    return statistics.fmean(values), spread if spread == spread else 0.0


def _better(measure: Measure) -> str:
    return f"{measure.title} ({'more' if measure.higher_is_better else 'less'} is better)"
