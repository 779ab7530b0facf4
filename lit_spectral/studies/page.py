"""A study of merges as one HTML page that needs nothing else, and its pictures as one PNG."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from lit_spectral import pages
from lit_spectral.files import written
from lit_spectral.studies.results import Results

__all__ = ["write_page", "write_plot"]

# Where failing is looked at for the sensitivity to τ.
TAUS = [number / 200 for number in range(100, 201)]
_ABOUT = """A merge fails where any task keeps less than τ of the score that its own adapter has alone (HiP-LoRA,
appendix C.3). ΔW is the merge's for every task; the head, and all else that was trained whole, is the task's own.
Intervals: a hierarchical paired bootstrap of 10,000 resamples over merges, then over the tasks within."""


def write_page(results: Results, title: str, command: str) -> str:
    """The page's HTML: for each rule a table and pictures, and how to run it again."""
    from matplotlib.colors import to_hex

    merges = len(results.of(results.rules[0], results.methods[0]))
    about = f"{merges} merges of each method by each rule · {pages.when(pages.processor())}"
    colours = [to_hex(f"C{number % 10}") for number in range(len(results.methods))]
    parts = [f'<p class="note">{escape(_ABOUT)} {escape(results.caption())}</p>']
    for rule in results.rules:
        figure, axes = pages.axes(2, 10.5, 3.4)
        _draw(results, rule, axes)
        parts += [f"<h2>Merged by {escape(rule)}</h2>"]
        parts += [pages.table(results.headings(), results.cells(rule), colours), pages.drawn(figure)]
    parts += [f"<h2>How to run it again</h2>\n<pre>{escape(command)}</pre>"]
    return pages.document(title, title, about, "\n".join(parts))


def write_plot(results: Results, file: Path) -> None:
    """The pictures of all rules, one above the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, axes = pages.axes(2, 10.5, 3.4 * len(results.rules), len(results.rules))
    for number, rule in enumerate(results.rules):
        _draw(results, rule, axes[2 * number : 2 * number + 2])
        axes[2 * number].set_title(f"merged by {rule}", loc="left")
    with written(file) as scratch:
        FigureCanvasAgg(figure).print_figure(scratch, format="png", dpi=110)


def _draw(results: Results, rule: str, axes: list[Any]) -> None:
    """The share of failed merges by τ, and the mean |Δ| by how many tasks are merged."""
    failing, changing = axes
    change = results.measures[0]
    for number, method in enumerate(results.methods):
        rows, colour = results.of(rule, method), f"C{number % 10}"
        shares = [100 * results.value(results.merge_fail(tau), rows) for tau in TAUS]
        failing.plot(TAUS, shares, label=pages.plain(method), color=colour)
        means = [results.value(change, results.of(rule, method, size)) for size in results.sizes]
        changing.plot(results.sizes, means, marker="o", color=colour)
    for tau in results.taus:
        failing.axvline(tau, color="0.7", lw=0.8, ls=":")
    failing.set(xlabel="τ", ylabel="MergeFail, %", ylim=(-3, 103))
    failing.legend(fontsize=8, frameon=False)
    changing.set(xlabel="tasks in a merge", ylabel="mean |Δ|", xticks=results.sizes)
    changing.margins(y=0.1)
    changing.set_ylim(bottom=0)
