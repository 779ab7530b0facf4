"""The comparison as one HTML page that needs nothing else, not even a network."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from lit_spectral import pages
from lit_spectral.comparison.front_view import Fronts
from lit_spectral.comparison.fronts import front
from lit_spectral.comparison.results import Comparison, Measure, Run, deviation
from lit_spectral.comparison.variants import Variant

__all__ = ["coloured_table", "write_page"]


def write_page(comparison: Comparison, fronts: Fronts | None, title: str, command: str) -> str:
    """The page's HTML: the table, fronts or task against retention, curves over training, how to run it again."""
    colours = {variant: f"C{number % 10}" for number, variant in enumerate(comparison.variants)}
    seeds = sorted({run.seed for run in comparison.runs})
    names = ", ".join(variant.name for variant in comparison.variants)
    machine = pages.machine(run.record["device"] for run in comparison.runs)
    about = f"{len(comparison.runs)} runs, seeds {', '.join(map(str, seeds))} · {pages.when(machine)}"
    reference = escape(comparison.compared_with())
    commands = "\n".join(escape(f"lit-spectral {shlex.join(run.command)}") for run in comparison.runs)
    body = f"""{coloured_table(comparison, colours)}
<p class="note">Mean ± standard deviation over seeds. Below: paired difference from {reference} and its 95 % interval
(Student's t). Task and retention are those of the model at the end of training.</p>
{_trade_off(comparison, colours) if fronts is None else _of_fronts(fronts)}
{_curves(comparison, colours)}
<h2>How to run it again</h2>
<pre>{escape(command)}</pre>
<details><summary>Each run's own command</summary><pre>{commands}</pre></details>"""
    found = f"{title}: {_found(comparison, fronts)}"
    return pages.document(found, found, f"{names} · {about}", body)


def _found(comparison: Comparison, fronts: Fronts | None) -> str:
    """What was found, in one line: the page's title."""
    if fronts is not None and fronts.rows:
        return _found_by(fronts, comparison.task)
    task, variants = comparison.task, comparison.variants
    scores = {variant: statistics.fmean(comparison.values(variant, task).values()) for variant in variants}
    best = task.show((max if task.higher_is_better else min)(scores.values()))
    by = [variant.name for variant in variants if task.show(scores[variant]) == best]
    said = f"best {task.title} {best}, by {' and '.join(by)}"
    for measure in comparison.retention[:1]:
        lost = {v: share for v in variants if (share := comparison.share_lost(v, measure)) is not None}
        least = min(lost, key=lambda variant: lost[variant], default=None)
        whose = comparison.references[0].name
        if least is not None and len(variants) > 1:
            of = "" if least.name == whose else f", {lost[least]:.0%} of what {whose} does"
            said += f"; by {measure.title}, {least.name} loses least{of}"
    return said


def _found_by(fronts: Fronts, task: Measure) -> str:
    """The method that loses least where the first one scores best, by the first measure of retention."""
    measure, first = fronts.rows[0].measure, fronts.methods[0]
    lost = {row.method: row.reached.lost_over_reference for row in fronts.rows if row.measure == measure}
    reaching = [name for name in lost if name != first and math.isfinite(lost[name].value)]
    if not reaching:
        return f"by {measure.title}, no other reaches {first}'s best {task.title}"
    best = min(reaching, key=lambda name: lost[name].value)
    value, low, high = lost[best]
    share = f"{value:.0%}" + (f" ({low:.0%} to {high:.0%})" if math.isfinite(low) else "")
    return f"at {first}'s best {task.title}, {best} loses {share} of what it loses of {measure.title}"


def coloured_table(comparison: Comparison, colours: Mapping[Variant, str]) -> str:
    """A row a variant, with a dot of its colour, as matplotlib names it."""
    from matplotlib.colors import to_hex

    return pages.table(
        comparison.headings(), comparison.rows(), [to_hex(colours[variant]) for variant in comparison.variants]
    )


def _trade_off(comparison: Comparison, colours: dict[Variant, str]) -> str:
    """What was learned against what was forgotten, or against ‖ΔW‖₂ where nobody looked at retention."""
    across = [m for m in comparison.retention or [comparison.norm] if m in comparison.measures]
    figures = []
    for measure in across:
        figure, (ax,) = pages.axes(1, 6.0, 4.4)
        _fronts(ax, comparison, measure, colours)
        figures.append(figure)
    note = '<p class="note">Dashed: the means that no other beats in both.</p>'
    return f"<h2>What was learned, and what was forgotten</h2>{note}{pages.panels(figures)}" if figures else ""


def _of_fronts(fronts: Fronts) -> str:
    """What each method reaches over its settings and scales of ΔW: a picture and a table for each measure."""
    colours = {method: f"C{number % 10}" for number, method in enumerate(fronts.methods)}
    parts = ["<h2>What each method reaches</h2>", f'<p class="note">{escape(fronts.about())}</p>']
    for measure in fronts.measures:
        figure, (ax,) = pages.axes(1, 8.5, 4.4)
        fronts.draw(ax, measure, colours)
        worse = f"({'more' if measure.higher_is_better else 'less'} is better)"
        ax.set(xlabel=pages.plain(f"{measure.title} {worse}"), ylabel=pages.plain(_better(fronts.comparison.task)))
        head, *body = fronts.cells(measure)
        parts += [pages.drawn(figure), pages.table(head, body)]
    return "".join(parts)


def _fronts(ax: Any, comparison: Comparison, across: Measure, colours: dict[Variant, str]) -> None:
    """Each run, each variant's mean with its deviation, and through the best of them the Pareto front."""
    means = []
    for variant in comparison.variants:
        found = [(_worse(across, run), comparison.task.of(run.record)) for run in comparison.of(variant)]
        points = [(x, y) for x, y in found if x is not None and y is not None]
        if not points:
            continue
        for run, (x, y) in zip(comparison.of(variant), found, strict=True):
            if x is not None and y is not None:
                point = ax.scatter(x, y, s=14, alpha=0.4, color=colours[variant], linewidths=0)
                pages.tell(point, f"{variant.name}, seed {run.seed}: {_values(comparison.task, y, across, x)}")
        (x, dx), (y, dy) = (_spread(values) for values in zip(*points, strict=True))
        means.append((x, y))
        mean, *_ = ax.errorbar(x, y, dy, dx, fmt="o", ms=8, color=colours[variant], capsize=0)
        pages.tell(mean, f"{variant.name}, mean: {_values(comparison.task, y, across, x)}")
        ax.annotate(pages.plain(variant.name), (x, y), xytext=(7, 6), textcoords="offset points", fontsize=9)
    lost, scores = np.array(means).reshape(-1, 2).T
    sign = 1 if comparison.task.higher_is_better else -1
    along, falling = front(sign * scores, -lost)
    ax.plot(-falling, sign * along, ls="--", lw=1, color="0.6", zorder=0)
    ax.margins(0.12)  # room for the names
    ax.set(xlabel=pages.plain(f"{_lost(across)} (less is better)"), ylabel=pages.plain(_better(comparison.task)))


def _lost(measure: Measure) -> str:
    return f"loss of {measure.title}" if measure.before is not None else measure.title


def _values(task: Measure, score: float, across: Measure, lost: float) -> str:
    return f"{task.title} {task.show(score)}, {_lost(across)} {across.show(lost)}"


def _curves(comparison: Comparison, colours: dict[Variant, str]) -> str:
    """Over training, of the runs whose folders are there."""
    scalars = {run.folder: _scalars(run.folder) for run in comparison.runs}
    tags = ["train/loss", "val/loss", comparison.task.name, "spectral_norm/max", "spectral_norm_estimate/max"]
    tags += [m.name for m in comparison.retention]
    present = [tag for tag in dict.fromkeys(tags) if any(tag in found for found in scalars.values())]
    figures = []
    for tag in present:
        figure, (ax,) = pages.axes(1, 5.2, 3.4)
        for variant in comparison.variants:
            lines = [scalars[run.folder][tag] for run in comparison.of(variant) if tag in scalars[run.folder]]
            _band(ax, lines, colours[variant], pages.plain(variant.name), smooth=tag == "train/loss")
        ax.set(title=pages.plain(tag), xlabel="optimizer step")
        ax.legend(fontsize=8, frameon=False)
        figures.append(figure)
    note = '<p class="note">Mean over seeds; bands from the lowest to the highest.</p>'
    return f"<h2>Over training</h2>{note}{pages.panels(figures)}" if figures else ""


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


def _worse(measure: Measure, run: Run) -> float | None:
    return measure.lost(run.record) if measure.before is not None else measure.of(run.record)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    spread = deviation(values)
    return statistics.fmean(values), spread if spread == spread else 0.0


def _better(measure: Measure) -> str:
    return f"{measure.title} ({'more' if measure.higher_is_better else 'less'} is better)"
