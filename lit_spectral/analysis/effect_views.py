"""What adapters do to the model, as tables, CSV and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lit_spectral import pages
from lit_spectral.analysis.effects import Effect
from lit_spectral.comparison.results import write_rows

__all__ = ["Effects", "effect_figures", "effect_rows", "effect_table", "write_effect_tables"]

# By source and text.
Effects = Mapping[str, Mapping[str, Effect]]

# Measures of predictions, in the order of columns.
_TOKENS = {
    "kl": "KL(base ‖ adapted)",
    "forgetting_loss": "forgetting loss",
    "base_entropy": "where nothing is forgotten",
    "loss": "loss",
    "base_loss": "the backbone's",
}


def effect_rows(effects: Effects) -> tuple[list[str], list[list[str]]]:
    """Heading and rows, one an adapter and text: nats a token, and how the last layer's states lie."""
    rows = [
        [
            source,
            text,
            *(f"{effect.tokens[each]:.4f}" if each in effect.tokens else "–" for each in _TOKENS),
            f"{effect.states[-1].cka:.4f}",
            f"{effect.states[-1].procrustes:.4f}",
        ]
        for source, text, effect in _each(effects)
    ]
    return ["adapter", "text", *_TOKENS.values(), "CKA, last layer", "Procrustes residual"], rows


def effect_table(effects: Effects) -> Table:
    """The same for the terminal, the other way round."""
    head, rows = effect_rows(effects)
    shown = Table()
    shown.add_column("")
    for source, text, *_ in rows:
        shown.add_column(escape(f"{source}, {text}"), justify="right", overflow="fold")
    for title, *cells in list(zip(head, *rows, strict=True))[2:]:
        shown.add_row(escape(title), *cells)
    return shown


def write_effect_tables(effects: Effects, folder: Path) -> list[str]:
    """`texts.csv`, a row a source and text; `states.csv`, one a layer too; `switches.csv`, one a place too.

    Returns the names of those that have rows, which alone are written.
    """
    tables: dict[str, list[dict[str, Any]]] = {"texts.csv": [], "states.csv": [], "switches.csv": []}
    for source, text, effect in _each(effects):
        where = {"source": source, "text": text}
        if effect.tokens:
            tables["texts.csv"].append(where | effect.tokens)
        tables["states.csv"] += [where | {"layer": n, **each._asdict()} for n, each in enumerate(effect.states)]
        for name, each in effect.switched.items():
            kl = {"kl": effect.tokens["kl"], "kl_without": each.without, "kl_alone": each.alone}
            tables["switches.csv"].append(where | {"switched": name, **each.place._asdict(), **kl})
    written = {name: rows for name, rows in tables.items() if rows}
    for name, rows in written.items():
        write_rows(folder / name, list(rows[0]), rows)
    return list(written)


def effect_figures(effects: Effects) -> list[Any]:
    """By text 1 − CKA and the Procrustes residual over layers; by text and adapter what each place's ΔW does."""
    found = []
    for text in dict.fromkeys(text for _, text, _ in _each(effects)):
        of_text = {source: texts[text] for source, texts in effects.items()}
        for measure, title in (("cka", "1 − CKA"), ("procrustes", "Procrustes residual")):
            found.append(_states(of_text, measure, f"{title} of hidden states on {text}"))
        for source, effect in of_text.items():
            if effect.switched:
                found += [_switches(effect, which, source, text) for which in ("without", "alone")]
    return found


def _states(effects: Mapping[str, Effect], measure: str, title: str) -> Any:
    """A line a source; at 0 the embeddings."""
    figure, (ax,) = pages.axes(1, 4.4, 3.1)
    for number, (source, effect) in enumerate(effects.items()):
        values = [getattr(each, measure) for each in effect.states]
        values = [1 - each for each in values] if measure == "cka" else values
        # On a logarithmic scale there is no place for what has not moved.
        shown = [each if each > 0 else math.nan for each in values]
        ax.plot(range(len(shown)), shown, f"C{number % 10}.-", lw=1.2, label=pages.plain(source))
    ax.set_yscale("log")
    _finish(ax, title, "layer; 0: embeddings")
    return figure


def _switches(effect: Effect, which: str, source: str, text: str) -> Any:
    """A line a kind of map over layers; the whole adapter's KL dotted."""
    figure, (ax,) = pages.axes(1, 4.4, 3.1)
    kinds: dict[str, list[tuple[float, float]]] = {}
    for each in effect.switched.values():
        layer = math.nan if each.place.layer is None else each.place.layer
        kinds.setdefault(each.place.kind, []).append((layer, getattr(each, which)))
    for number, (kind, points) in enumerate(kinds.items()):
        label = pages.plain(kind or "all of a layer's maps")
        ax.plot(*zip(*sorted(points), strict=True), f"C{number % 10}.-", lw=1.2, label=label)
    ax.axhline(effect.tokens["kl"], color="0.6", lw=0.8, ls=":")
    how = "without this ΔW" if which == "without" else "with this ΔW alone"
    _finish(ax, f"KL {how}: {source} on {text}", "layer")
    return figure


def _finish(ax: Any, title: str, across: str) -> None:
    ax.locator_params(axis="x", integer=True)
    ax.set_title(pages.plain(title), fontsize=10)
    ax.set_xlabel(across)
    ax.legend(fontsize=8, frameon=False)


def _each(effects: Effects) -> Iterator[tuple[str, str, Effect]]:
    for source, texts in effects.items():
        for text, effect in texts.items():
            yield source, text, effect
