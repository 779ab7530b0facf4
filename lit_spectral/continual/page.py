"""A study of stages as one HTML page that needs nothing else, not even a network."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from lit_spectral import pages
from lit_spectral.comparison.page import coloured_table
from lit_spectral.comparison.results import Comparison
from lit_spectral.comparison.variants import Variant
from lit_spectral.continual.results import Sequenced, as_text, matrix, row_names, shown
from lit_spectral.continual.scores import Scores
from lit_spectral.continual.stages import Stage

__all__ = ["write_page"]

_TABLE = """Mean ± standard deviation over seeds; below, the paired difference from {reference} and its 95 % interval
(Student's t). Final: after the last stage. Forgetting: the best score from when a stage was trained on, less the final
one, mean over all but the last; less is better. Backward transfer: the final score less that right after its own
training; forward transfer: the score just before its own training less the backbone's. What is retained is measured
after the last stage too; ‖ΔW‖₂ is told where there is one adapter alone."""
_MATRICES = """A row for each stage that was trained on, a column for each that was validated on: means over seeds.
Colours run from the worst (dark) to the best score of a column, over all methods."""
_HEADS = """Each stage has a head of its own: what stands in its column is of that head, as it was when the stage ended,
on top of the pretrained part as it is after the row's stage. Before that there is no head to measure."""


def write_page(comparison: Comparison, found: Sequence[Sequenced], stages: Sequence[Stage], command: str) -> str:
    """The page's HTML: the table, matrices as heat maps, retention by stage, every sequence, how to run it again.

    Args:
        comparison: of the sequences that came to their end.
        found: all sequences, as far as they came.
        stages: in the order of training.
        command: that made them.
    """
    by_variant: dict[Variant, list[Sequenced]] = {}
    for each in found:
        if each.rows or each.joint:
            by_variant.setdefault(each.variant, []).append(each)
    colours = {variant: f"C{number % 10}" for number, variant in enumerate(by_variant)}
    parts = []
    if comparison.runs:
        parts += [coloured_table(comparison, colours), _note(_TABLE.format(reference=comparison.compared_with()))]
    parts += ["<h2>Scores after each stage</h2>", _note(_MATRICES)]
    parts += [_note(_HEADS)] if stages[0].own_head else []
    parts += [_heat_maps(by_variant, stages), _retention(comparison, by_variant, stages, colours)]
    parts += [f"<details><summary>Each seed's scores</summary>{_all_scores(by_variant, stages)}</details>"]
    commands = "\n".join(escape(f"lit-spectral {shlex.join(each)}") for one in found for each in one.commands)
    parts += [f"<h2>How to run it again</h2><pre>{escape(command)}</pre>"]
    parts += [f"<details><summary>Each run's own command</summary><pre>{commands}</pre></details>"]
    title = " → ".join(stage.name for stage in stages)
    seeds = ", ".join(map(str, sorted({each.seed for each in found})))
    machine = pages.machine(record["device"] for each in found for record in each.records)
    return pages.document(title, title, f"seeds {seeds} · {pages.when(machine)}", "\n".join(parts))


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _heat_maps(by_variant: Mapping[Variant, Sequence[Sequenced]], stages: Sequence[Stage]) -> str:
    """A matrix for each variant, with its numbers in it."""
    means = {variant: shown(found, stages) for variant, found in by_variant.items()}
    upward = np.where([stage.higher_is_better for stage in stages], 1.0, -1.0)
    every = np.array([scores for rows in means.values() for scores in rows.values()]) * upward
    low, high = np.nanmin(every, axis=0, initial=np.inf), np.nanmax(every, axis=0, initial=-np.inf)
    figures = []
    for variant, rows in means.items():
        figure, (ax,) = pages.axes(1, 1.6 + 0.95 * len(stages), 1.0 + 0.42 * len(rows))
        scores = np.array(list(rows.values()))
        _draw(ax, scores, (scores * upward - low) / np.where(high > low, high - low, 1.0), list(rows), stages)
        ax.set_title(pages.plain(f"{variant.name}, {by_variant[variant][0].how}"), fontsize=10)
        figures.append(figure)
    return pages.panels(figures)


def _draw(ax: Any, scores: Scores, shades: Scores, names: Sequence[str], stages: Sequence[Stage]) -> None:
    """Scores (rows, stages) as text on shades in [0, 1]."""
    ax.grid(False)
    ax.imshow(shades, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), score in np.ndenumerate(scores):
        shade = shades[row, column]
        # Plain black is the page's own ink, which is light in the dark.
        ink = "black" if np.isnan(shade) else "white" if shade < 0.55 else "#000001"
        ax.text(column, row, as_text(score), ha="center", va="center", fontsize=8, color=ink)
    labels = [pages.plain(f"{stage.name}\n{stage.metric.removeprefix('val/')}") for stage in stages]
    ax.set_xticks(range(len(stages)), labels, fontsize=8)
    ax.set_yticks(range(len(names)), [pages.plain(name) for name in names], fontsize=8)


def _retention(
    comparison: Comparison,
    by_variant: Mapping[Variant, Sequence[Sequenced]],
    stages: Sequence[Stage],
    colours: Mapping[Variant, str],
) -> str:
    """What is left of the backbone after each stage: means over seeds, and bands from the lowest to the highest."""
    figures = []
    for measure in comparison.retention:
        figure, (ax,) = pages.axes(1, 5.0, 3.4)
        for variant, found in by_variant.items():
            after = [
                [measure.of(each.records[n]) for each in found if n < len(each.records)] for n in range(len(stages))
            ]
            values = [[float(value) for value in each if value is not None] for each in after]
            first = next((each.records[0] for each in found if each.records), None)
            before = measure.before(first) if first is not None and measure.before is not None else None
            steps = [step for step, each in enumerate([[before] if before is not None else [], *values]) if each]
            values = [each for each in [[before] if before is not None else [], *values] if each]
            ax.plot(steps, [statistics.fmean(v) for v in values], "o-", ms=4, lw=1.5, color=colours[variant],
                    label=pages.plain(variant.name))  # fmt: skip
            ax.fill_between(steps, [min(v) for v in values], [max(v) for v in values], alpha=0.15, lw=0,
                            color=colours[variant])  # fmt: skip
        ax.set_xticks(range(len(stages) + 1), ["backbone", *(pages.plain(stage.name) for stage in stages)], fontsize=8)
        ax.set_title(pages.plain(measure.title), fontsize=10)
        ax.legend(fontsize=8, frameon=False)
        figures.append(figure)
    return f"<h2>What is retained, by stage</h2>{pages.panels(figures)}" if figures else ""


def _all_scores(by_variant: Mapping[Variant, Sequence[Sequenced]], stages: Sequence[Stage]) -> str:
    head, order = ["", *(f"{stage.name}: {stage.metric}" for stage in stages)], row_names(stages)
    tables = []
    for variant, found in by_variant.items():
        for each in found:
            rows = each.named_rows(stages)
            scores = matrix([rows[name] for name in order if name in rows], stages)
            names = [name for name in order if name in rows]
            body = [[name, *map(as_text, line)] for name, line in zip(names, scores, strict=True)]
            tables += [f"<h3>{escape(f'{variant.name}, seed {each.seed}')}</h3>", pages.table(head, body)]
    return "".join(tables)
