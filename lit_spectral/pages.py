"""Parts of HTML pages that need nothing else, not even a network: one file each, for a phone and in the dark too."""

from __future__ import annotations

import io
import platform
import re
from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from typing import Any

import torch

from lit_spectral.evaluation.provenance import provenance

__all__ = ["axes", "document", "drawn", "machine", "panels", "plain", "processor", "table", "tell", "when"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --soft: #5c6675; --line: #d5dae1; --code: #f3f5f8 }
@media (prefers-color-scheme: dark) {
:root { --ink: #e4e8ee; --paper: #14181f; --soft: #9aa5b5; --line: #39424f; --code: #1f2630 } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
color: var(--ink); background: var(--paper) }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
h1, p { overflow-wrap: anywhere } .wide { overflow-x: auto } svg { width: 100%; height: auto }
svg text { fill: var(--ink) } svg [style*="stroke: #000000"] { stroke: var(--ink) !important }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr));
gap: 1rem 2rem; margin-top: 1rem }
table { border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums; white-space: nowrap }
th { border-bottom: 2px solid var(--ink); vertical-align: bottom; white-space: normal; min-width: 5rem }
td { border-bottom: 1px solid var(--line); vertical-align: top }
th, td { padding: .4rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper) }
th button { all: unset; cursor: pointer } th button:focus-visible { outline: 2px solid }
th[aria-sort=ascending] button::after { content: " ↑" } th[aria-sort=descending] button::after { content: " ↓" }
td small, p.note { color: var(--soft) } td small { display: block }
i { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .5em }
pre { background: var(--code); padding: .8rem; overflow-x: auto; font-size: .8rem }
"""

# A click on a heading sorts by its column: by the numbers that its cells begin with, if any does, and once more the
# other way round. Cells without one come last.
_SORT = """
const number = cell => parseFloat(cell.textContent.replaceAll(",", "").replace("\u2212", "-"));
document.addEventListener("click", event => {
  const head = event.target.closest("th button")?.parentElement;
  if (!head) return;
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const falling = head.ariaSort !== "descending", rows = [...body.rows], of = row => row.cells[column];
  const numbers = rows.some(row => !isNaN(number(of(row))));
  rows.sort((a, b) => {
    if (!numbers) return of(falling ? a : b).textContent.localeCompare(of(falling ? b : a).textContent);
    const [x, y] = [number(of(a)), number(of(b))];
    return isNaN(x) - isNaN(y) || (falling ? y - x : x - y) || 0;
  });
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.ariaSort = falling ? "descending" : "ascending";
  body.append(...rows);
});
"""

_TOLD = "told: "  # what an id begins with that is to be shown


def document(title: str, heading: str, about: str, body: str) -> str:
    """The whole page. All but `body` is plain text: the window's title, the heading, and what it was made with."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{_STYLE}</style></head><body>
<h1>{escape(heading)}</h1>
<p class="note">{escape(about)}</p>
{body}
<script>{_SORT}</script>
</body></html>
"""


def when(machine: str) -> str:
    """Today's date, the machine, and the versions that figures depend on."""
    today = date.today()
    return f"{today.day} {today:%B %Y} · {machine} · " + ", ".join(
        f"{name} {number}" for name, number in provenance()["versions"].items() if name in {"lit-spectral", "torch"}
    )


def machine(devices: Iterable[str]) -> str:
    """What ran, by the devices that runs recorded; of `cpu` the processor here."""
    return ", ".join(processor() if device == "cpu" else device for device in sorted({*devices}))


def processor() -> str:
    """Of the machine that this runs on."""
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def table(head: Iterable[str], body: Iterable[Sequence[str]], colours: Iterable[str] | None = None) -> str:
    """A table of plain text, sorted by a click; what follows a line break in a cell is shown small beneath.

    Args:
        head: a cell a column.
        body: the rows.
        colours: a dot before each row's first cell, as hexadecimal.
    """
    dots = [f'<i style="background:{colour}"></i>' for colour in colours or ()]
    rows = []
    for number, cells in enumerate(body):
        shown = []
        for cell in cells:
            value, _, beneath = cell.partition("\n")
            shown.append(escape(value) + (f"<small>{escape(beneath)}</small>" if beneath else ""))
        shown[0] = (dots[number] if dots else "") + shown[0]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in shown) + "</tr>")
    heads = "".join(f"<th><button>{escape(cell)}</button></th>" for cell in head)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def axes(columns: int, width: float, height: float, rows: int = 1) -> tuple[Any, list[Any]]:
    """A figure of so many inches, and its axes in reading order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    found = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in found:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, found


def drawn(figure: Any) -> str:
    """A figure as SVG, without a ground of its own."""
    from matplotlib import rc_context

    text = io.StringIO()
    # Text stays text: it can be searched, and the file is a tenth of the size. The date would change every file.
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    shown = text.getvalue()[text.getvalue().index("<svg") :]
    return re.sub(rf"<g id=([\"']){_TOLD}(.*?)\1>", r"<g><title>\2</title>", shown)


def tell(artist: Any, about: str) -> None:
    """Have a part of a figure say what it is where somebody points at it."""
    artist.set_gid(_TOLD + about)


def panels(figures: Iterable[Any]) -> str:
    """Small figures, as many beside each other as there is room for."""
    return f'<div class="panels">{"".join(f"<div>{drawn(figure)}</div>" for figure in figures)}</div>'


def plain(text: str) -> str:
    """What matplotlib shows as it is; between two dollars it would read mathematics."""
    return text.replace("$", r"\$")
