"""A study of edits as one HTML page that needs nothing else, not even a network."""

from __future__ import annotations

import shlex
from html import escape
from typing import Any

from lit_spectral import pages
from lit_spectral.editing.results import Results

__all__ = ["write_page"]

# Edits whose answers are shown.
SHOWN = 30
_ABOUT = """Success of an edit: the new answer is said, word for word at the start of what is generated, or is held
likelier than the old one by teacher forcing (HiP-LoRA, appendix C.4). Locality: how often the answers to unrelated
prompts are said, and how likely they are held, after training less before. Intervals are of these edits and prompts,
after the mean over seeds, and not of what other seeds would train."""


def write_page(results: Results, title: str, command: str) -> str:
    """The page's HTML: the table, success by category beside locality, what was said, how to run it again."""
    from matplotlib.colors import to_hex

    colours = [to_hex(f"C{number % 10}") for number in range(len(results.variants))]
    seeds = ", ".join(map(str, sorted({each.seed for each in results.adapted})))
    machine = pages.machine(each.run.record["device"] for each in results.adapted)
    parts = [pages.table(results.headings(), results.rows(), colours)]
    parts += [f'<p class="note">{escape(_ABOUT)} {escape(results.caption())}</p>', pages.panels(_figures(results))]
    parts += [f"<h2>What was said</h2>{_answers(results)}"]
    commands = "\n".join(escape(f"lit-spectral {shlex.join(each.run.command)}") for each in results.adapted)
    parts += [f"<h2>How to run it again</h2>\n<pre>{escape(command)}</pre>"]
    parts += [f"<details><summary>Each run's own command</summary><pre>{commands}</pre></details>"]
    about = (
        f"{len(results.edits)} edits, {len(results.probes)} unrelated prompts, seeds {seeds} · {pages.when(machine)}"
    )
    return pages.document(title, title, about, "\n".join(parts))


def _figures(results: Results) -> list[Any]:
    """Success by category, and success against what became of unrelated prompts; bars are the intervals."""
    named = {measure.name: measure for measure in results.measures}
    ways = ["success", "said", "preferred", *(name for name in named if name.startswith("success "))]
    bars, (ax,) = pages.axes(1, 5.4, 3.6)
    width = 0.8 / len(results.variants)
    for number, variant in enumerate(results.variants):
        places = [place + number * width for place in range(len(ways))]
        found = [results.value(named[way], variant) for way in ways]
        ax.bar(places, [100 * each.mean for each in found], width, color=f"C{number % 10}",
               label=pages.plain(variant.name))  # fmt: skip
        ax.vlines(places, [100 * each.low for each in found], [100 * each.high for each in found], color="0.5", lw=1)
    names = [pages.plain(way.removeprefix("success ")) for way in ways]
    ax.set_xticks([place + 0.4 - width / 2 for place in range(len(ways))], names, fontsize=8, rotation=20)
    ax.set(ylabel="% of edits", ylim=(0, 103))
    ax.legend(fontsize=8, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return [bars, *([_trade_off(results, named)] if results.probes else [])]


def _trade_off(results: Results, named: dict[str, Any]) -> Any:
    figure, (ax,) = pages.axes(1, 5.4, 3.6)
    for number, variant in enumerate(results.variants):
        x, y = (results.value(named[name], variant) for name in ("said", "accuracy change"))
        style = {"color": f"C{number % 10}"}
        ax.plot(100 * x.mean, 100 * y.mean, "o", label=pages.plain(variant.name), **style)
        ax.hlines(100 * y.mean, 100 * x.low, 100 * x.high, lw=1, **style)
        ax.vlines(100 * x.mean, 100 * y.low, 100 * y.high, lw=1, **style)
    ax.set(xlabel="new answer said, % of edits", ylabel="unrelated: change of accuracy, points")
    ax.legend(fontsize=8, frameon=False)
    return figure


def _answers(results: Results) -> str:
    """The first edits and what each method's first adapter that was taught them says."""
    head = ["prompt", "old", "new", "backbone", *(variant.name for variant in results.variants)]
    before = results.before[results.variants[0]].edits
    texts: list[dict[int, str]] = []
    for variant in results.variants:
        found: dict[int, str] = {}
        for each in results.of(variant):
            for number, edited in enumerate(each.measured.edits, each.first):
                found.setdefault(number, edited.text)
        texts.append(found)
    body = [
        [edit.prompt, edit.old, edit.new, before[number].text, *(found.get(number, "–") for found in texts)]
        for number, edit in enumerate(results.edits[:SHOWN])
    ]
    # A line's end in a cell is where small print begins.
    table = pages.table(head, [[" ".join(cell.split()) for cell in row] for row in body])
    more = f'<p class="note">The first {SHOWN} of {len(results.edits)}; all are in edits.csv.</p>'
    return table + (more if len(results.edits) > SHOWN else "")
