"""Pictures of an analysis: each a panel on given axes, and which of them belong together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lit_spectral import pages
from lit_spectral.analysis.magnitude import ABOVE
from lit_spectral.analysis.measuring import SHOWN, SUBSPACES, THRESHOLDS, Analysis, Changed
from lit_spectral.analysis.results import by_kind, by_layer, intruders, mean, places, values_of
from lit_spectral.analysis.weights import error_curve
from lit_spectral.files import written

__all__ = ["PANELS", "View", "figures", "write_overview"]

# Panels of the overview.
_OVERVIEW = ("spectra", "norms", "effective rank", "phi top", "phi bottom", "energy", "gains", "intruders")


class View(NamedTuple):
    """A panel, which draws an analysis on axes; one by layer is left out where no path has a number."""

    draw: Callable[[Any, Analysis], None]
    by_layer: bool = False


def _label(ax: Any, title: str, across: str, up: str = "") -> None:
    ax.set_title(pages.plain(title), fontsize=10)
    ax.set_xlabel(pages.plain(across))
    ax.set_ylabel(pages.plain(up))


def _legend(ax: Any) -> None:
    ax.legend(fontsize=8, frameon=False)


def _from_0(ax: Any) -> None:
    """For counts, which may all be 0."""
    ax.set_ylim(0, max(1, ax.get_ylim()[1]))


def _curves(
    ax: Any, analysis: Analysis, of: Callable[[Sequence[Changed]], float], title: str, log: bool = False
) -> None:
    """A line a source over layers."""
    for number, (source, changes) in enumerate(analysis.changes.items()):
        layers = by_layer(changes)
        ax.plot(
            list(layers), [of(maps) for maps in layers.values()], f"C{number % 10}.-", lw=1.2, label=pages.plain(source)
        )
    if log:
        ax.set_yscale("log")
    ax.locator_params(axis="x", integer=True)
    _label(ax, title, "layer")
    _legend(ax)


def _mean_by_layer(measure: str, title: str, log: bool = False) -> View:
    return View(lambda ax, analysis: _curves(ax, analysis, partial(mean, measure=measure), title, log), True)


def _total_energy(maps: Sequence[Changed]) -> float:
    return sum(values_of(maps, "energy"))


def _phi_by_kind(ax: Any, analysis: Analysis, part: str) -> None:
    """A dot a source for each kind of map."""
    kinds = list(by_kind(analysis.weights))
    for number, (source, changes) in enumerate(analysis.changes.items()):
        found = by_kind(changes)
        heights = np.arange(len(kinds)) + 0.12 * (number - (len(analysis.changes) - 1) / 2)
        values = [mean(found.get(kind, []), f"phi_{part}") for kind in kinds]
        ax.plot(values, heights, f"C{number % 10}o", ms=5, label=pages.plain(source))
    ax.set_yticks(range(len(kinds)), [pages.plain(kind) for kind in kinds], fontsize=8)
    ax.set_ylim(len(kinds) - 0.5, -0.5)
    ax.set_xlim(left=0)
    _label(ax, f"φ with W₀'s {part} {analysis.rank} left singular vectors", "φ, mean over layers")
    _legend(ax)


def _spectra(ax: Any, analysis: Analysis) -> None:
    """Singular values of ΔW: the mean over maps, and a band from the least to the largest."""
    for number, (source, changes) in enumerate(analysis.changes.items()):
        longest = max(len(each.sigma) for each in changes.values())
        values = torch.full((len(changes), longest), math.nan, dtype=torch.float64)
        for row, each in zip(values, changes.values(), strict=True):
            rank = int(each.measures["rank"])
            row[:rank] = each.sigma[:rank]
        shown = [place for place in places(longest) if not values[:, place].isnan().all()]
        numbers, at = [place + 1 for place in shown], values[:, shown].numpy()
        colour = f"C{number % 10}"
        ax.plot(numbers, np.nanmean(at, 0), color=colour, lw=1.5, label=pages.plain(source))
        ax.fill_between(numbers, np.nanmin(at, 0), np.nanmax(at, 0), color=colour, alpha=0.15, lw=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.axhline(ABOVE, color="0.6", lw=0.8, ls=":")
    _label(ax, "singular values of ΔW, mean and range over maps", "number", "σ")
    _legend(ax)


def _gains(ax: Any, analysis: Analysis) -> None:
    """|gain| on W₀'s leading singular directions: the median over maps, and a band between the quartiles."""
    for number, (source, changes) in enumerate(analysis.changes.items()):
        gains = torch.stack([each.gains.abs() for each in changes.values()]).numpy()
        low, middle, high = np.quantile(gains, [0.25, 0.5, 0.75], axis=0)
        numbers, colour = range(1, gains.shape[1] + 1), f"C{number % 10}"
        ax.plot(numbers, middle, color=colour, lw=1.5, label=pages.plain(source))
        ax.fill_between(numbers, low, high, color=colour, alpha=0.15, lw=0)
    ax.set_yscale("log")
    _label(ax, "gains |uᵢᵀ ΔW vᵢ| on W₀'s singular directions", "i; σᵢ falls", "median and quartiles")
    _legend(ax)


def _thresholds(ax: Any, analysis: Analysis) -> None:
    """Intruders of all maps by threshold."""
    for number, (source, changes) in enumerate(analysis.changes.items()):
        counts = [intruders(list(changes.values()), each) for each in THRESHOLDS]
        ax.plot(THRESHOLDS, counts, f"C{number % 10}.-", lw=1.2, label=pages.plain(source))
    _label(ax, "intruder dimensions of W₀ + ΔW, all maps", "threshold of |cosine|", "number")
    _from_0(ax)
    _legend(ax)


def _intruders_by_layer(ax: Any, analysis: Analysis) -> None:
    title = f"intruder dimensions below {SHOWN}, all of a layer's maps"
    _curves(ax, analysis, partial(intruders, threshold=SHOWN), title)
    _from_0(ax)


def _errors(ax: Any, analysis: Analysis) -> None:
    """E(n) of W₀ over n / m by kind of map, mean over layers, beside an ideal matrix of low rank."""
    along = np.linspace(0, 1, 65)

    def line(curve: Any) -> Any:
        return np.interp(along, np.linspace(0, 1, len(curve)), curve)

    for kind, maps in by_kind(analysis.weights).items():
        ax.plot(along, np.mean([line(each.curve) for each in maps], 0), lw=1.2, label=pages.plain(kind or "W₀"))
    shape = max(analysis.ideal, key=min)
    ax.plot(along, line(error_curve(analysis.ideal[shape])), "--", color="0.5", lw=1.2, label="ideal, low rank")
    ax.axhline(0.05, color="0.6", lw=0.8, ls=":")
    _label(ax, "W₀ without its n largest singular values", "n / smaller side", "‖W₀ − Wₙ‖_F / ‖W₀‖_F")
    _legend(ax)


def _decays(ax: Any, analysis: Analysis) -> None:
    """σₙ / σ₁ of the last layer's W₀ with the fitted decay dotted, by kind of map."""
    for number, (kind, maps) in enumerate(by_kind(analysis.weights).items()):
        weight = maps[-1]
        shown = places(len(weight.sigma))
        numbers, colour = np.array(shown) + 1.0, f"C{number % 10}"
        ax.plot(numbers, weight.sigma[shown] / weight.sigma[0], color=colour, lw=1.2, label=pages.plain(kind or "W₀"))
        ax.plot(numbers, weight.decay.constant * np.exp(-weight.decay.rate * numbers), ":", color=colour, lw=1.2)
    shape = max(analysis.ideal, key=min)
    shown = places(len(analysis.ideal[shape]))
    ax.plot(np.array(shown) + 1.0, analysis.ideal[shape][shown], "--", color="0.5", lw=1.2, label="ideal, low rank")
    ax.set_ylim(0, 1.05)
    _label(ax, "σₙ / σ₁ of the last W₀ of a kind, and C e^(−αn), dotted", "n")
    _legend(ax)


# By section of the page.
PANELS: dict[str, dict[str, View]] = {
    "size": {
        "spectra": View(_spectra),
        "norms": _mean_by_layer("spectral", "‖ΔW‖₂, mean of a layer's maps"),
        "energy sum": View(lambda ax, a: _curves(ax, a, _total_energy, "Σσ², all of a layer's maps", True), True),
        "exceeding": _mean_by_layer("exceeding", f"σ > {ABOVE}, mean of a layer's maps"),
        "rank": _mean_by_layer("rank", "rank, mean of a layer's maps"),
        "effective rank": _mean_by_layer("effective_rank", "effective rank, mean of a layer's maps"),
    },
    "place": {
        **{f"phi {part}": _mean_by_layer(f"phi_{part}", f"φ with W₀'s {part} left singular vectors")
           for part in SUBSPACES},
        **{f"phi {part} by kind": View(partial(_phi_by_kind, part=part)) for part in SUBSPACES},
        "energy": _mean_by_layer("energy_in_top", "share of ‖ΔW‖_F² in W₀'s top basis, both sides"),
        "gains": View(_gains),
    },
    "intruders": {
        "intruders": View(_thresholds),
        "by layer": View(_intruders_by_layer, True),
    },
    "weights": {"errors": View(_errors), "decays": View(_decays)},
}  # fmt: skip


def figures(analysis: Analysis, section: str) -> list[Any]:
    """A small figure for each panel of a section that has something to show."""
    made = []
    for view in _shown(analysis, PANELS[section]).values():
        figure, (ax,) = pages.axes(1, 4.4, 3.1)
        view.draw(ax, analysis)
        made.append(figure)
    return made


def write_overview(analysis: Analysis, title: str, file: Path) -> None:
    """Some of the panels on one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    every = {name: view for section in PANELS.values() for name, view in section.items() if name in _OVERVIEW}
    views = list(_shown(analysis, every).values())
    columns = min(4, len(views))
    rows = -(-len(views) // columns)
    figure, found = pages.axes(columns, 4.4 * columns, 3.3 * rows, rows)
    for ax, view in zip(found, views, strict=False):
        view.draw(ax, analysis)
    for ax in found[len(views) :]:
        ax.set_axis_off()
    figure.suptitle(pages.plain(title), fontsize="large")
    with written(file) as scratch:
        FigureCanvasAgg(figure).print_figure(scratch, format="png", dpi=110)


def _shown(analysis: Analysis, views: Mapping[str, View]) -> dict[str, View]:
    numbered = any(by_layer(changes) for changes in analysis.changes.values())
    return {name: view for name, view in views.items() if numbered or not view.by_layer}
