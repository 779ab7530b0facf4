"""What was measured, as rows: one source beside the other, by kind of map, by layer, and all of it as CSV."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from lit_spectral.analysis.magnitude import ABOVE
from lit_spectral.analysis.measuring import SHOWN, THRESHOLDS, Analysis, Changed, place_of
from lit_spectral.comparison.results import write_rows
from lit_spectral.updates.intruders import AMONG

__all__ = [
    "by_kind",
    "by_layer",
    "intruders",
    "intruders_by_threshold",
    "mean",
    "median",
    "places",
    "projections_by_kind",
    "share",
    "summary",
    "table",
    "values_of",
    "weights_by_kind",
    "write_tables",
]

# Singular values of one matrix that are written and drawn.
MOST_VALUES = 64
# Columns of a table by kind of map: title and measure.
_PROJECTED = {
    "‖UᵀW₀V‖_F, ΔW's": "weight_in_delta",
    "W₀'s": "weight_in_weight",
    "random": "weight_in_random",
    "‖UᵀΔWV‖_F, W₀'s": "delta_in_weight",
    "‖ΔW‖_F": "frobenius",
    "factor W→ΔW": "amplification",
    "factor ΔW→W": "novelty",
}


def values_of(changes: Iterable[Changed], measure: str) -> list[float]:
    """Those that maps have of a measure."""
    found = (each.measures.get(measure, math.nan) for each in changes)
    return [value for value in found if not math.isnan(value)]


def mean(changes: Iterable[Changed], measure: str) -> float:
    """Over the maps that have it; NaN where none has."""
    values = values_of(changes, measure)
    return statistics.fmean(values) if values else math.nan


def median(changes: Iterable[Changed], measure: str) -> float:
    """Over the maps that have it, since a ratio may be huge; NaN where none has."""
    values = values_of(changes, measure)
    return statistics.median(values) if values else math.nan


def intruders(changes: Iterable[Changed], threshold: float) -> int:
    """How many there are in all maps."""
    return int(sum(values_of(changes, f"intruders_{threshold:g}")))


def share(maps: Iterable[Changed], measure: str) -> float:
    """Of all maps' energy, of a measure that is a share of one's; NaN where there is none."""
    given = [each.measures for each in maps if each.measures["energy"] > 0]
    total = sum(each["energy"] for each in given)
    return sum(each[measure] * each["energy"] for each in given) / total if total else math.nan


def by_layer(changes: Mapping[str, Changed]) -> dict[int, list[Changed]]:
    """The maps of each layer that has a number, first to last."""
    found: dict[int, list[Changed]] = defaultdict(list)
    for path, each in changes.items():
        layer = place_of(path).layer
        if layer is not None:
            found[layer].append(each)
    return dict(sorted(found.items()))


def by_kind(changes: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What belongs to each kind of map, in the order of paths."""
    found: dict[str, list[Any]] = defaultdict(list)
    for path, each in changes.items():
        found[place_of(path).kind].append(each)
    return dict(found)


def places(count: int) -> list[int]:
    """At most 64 of `count` places from 0, about evenly on a logarithmic scale, the first and the last among them."""
    if count <= MOST_VALUES:
        return list(range(count))
    return sorted({round(each) - 1 for each in np.geomspace(1, count, MOST_VALUES)})


def summary(analysis: Analysis) -> list[list[str]]:
    """The rows of the first table, a column a source behind a title."""
    rows: dict[str, Callable[[list[Changed]], str]] = {
        "maps": lambda maps: str(len(maps)),
        "‖ΔW‖₂, largest": lambda maps: f"{max(values_of(maps, 'spectral')):.4g}",
        "‖ΔW‖_F, of all": lambda maps: f"{math.sqrt(sum(values_of(maps, 'energy'))):.4g}",
        "rank, mean": lambda maps: f"{mean(maps, 'rank'):.1f}",
        "stable rank, mean": lambda maps: f"{mean(maps, 'stable_rank'):.2f}",
        "effective rank, mean": lambda maps: f"{mean(maps, 'effective_rank'):.2f}",
        f"σ > {ABOVE}, mean": lambda maps: f"{mean(maps, 'exceeding'):.1f}",
        f"of ‖ΔW‖_F² in U_{analysis.top} and V_{analysis.top}": lambda maps: _share(maps, "energy_in_top"),
        f"in U_{analysis.top}": lambda maps: _share(maps, "rho_left"),
        f"in V_{analysis.top}": lambda maps: _share(maps, "rho_right"),
        "correlation of |gain| with σ, mean": lambda maps: f"{mean(maps, 'gain_correlation'):+.2f}",
        "factor W→ΔW, median": lambda maps: f"{median(maps, 'amplification'):.3g}",
        "factor ΔW→W, median": lambda maps: f"{median(maps, 'novelty'):.3g}",
        "φ with W₀'s top vectors, mean": lambda maps: f"{mean(maps, 'phi_top'):.4f}",
        "φ with W₀'s bottom vectors, mean": lambda maps: f"{mean(maps, 'phi_bottom'):.4f}",
        "φ with random ones of W₀'s, mean": lambda maps: f"{mean(maps, 'phi_random'):.4f}",
        f"intruders below {SHOWN}, of {AMONG} a map": lambda maps: str(intruders(maps, SHOWN)),
    }
    sources = [list(maps.values()) for maps in analysis.changes.values()]
    return [[title, *(show(maps) for maps in sources)] for title, show in rows.items()]


def table(analysis: Analysis) -> Group:
    """The first table for the terminal, four sources at a time."""
    rows, names = summary(analysis), list(analysis.changes)
    shown = []
    for start in range(0, len(names), 4):
        part = Table()
        part.add_column("")
        for name in names[start : start + 4]:
            part.add_column(escape(name), justify="right", overflow="fold")
        for title, *cells in rows:
            part.add_row(escape(title), *cells[start : start + 4])
        shown.append(part)
    return Group(*shown)


def projections_by_kind(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: means over a kind's maps, of factors medians; the columns of FCLoRA's Table 7."""
    rows = []
    for kind in by_kind(analysis.weights):
        for source, changes in analysis.changes.items():
            maps = by_kind(changes).get(kind, [])
            if maps:
                of = {measure: median if "factor" in title else mean for title, measure in _PROJECTED.items()}
                rows.append([kind, source, *(f"{of[measure](maps, measure):.3g}" for measure in of)])
    return ["map", "adapter", *_PROJECTED], rows


def intruders_by_threshold(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: how many of the leading vectors of W₀ + ΔW are like none of W₀'s."""
    rows = []
    for source, changes in analysis.changes.items():
        maps = list(changes.values())
        rows.append([source, str(AMONG * len(maps)), *(str(intruders(maps, each)) for each in THRESHOLDS)])
    return ["adapter", "vectors", *(f"{each:g}" for each in THRESHOLDS)], rows


def weights_by_kind(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: W₀, means over a kind's maps."""
    head = ["map", "shape", "σ⁽¹⁾", "σ⁽²⁾", "σ⁽³⁾", "σ⁽⁴⁾", "‖W₀‖_F", "α", "n at 5 %", "n at 5 %, ideal"]
    rows = []
    for kind, maps in by_kind(analysis.weights).items():
        shapes = ", ".join(dict.fromkeys(f"{each.shape[0]} x {each.shape[1]}" for each in maps))
        levels = [statistics.fmean(level) for level in zip(*(each.quartiles for each in maps), strict=True)]
        figures = [*levels, *(statistics.fmean(each) for each in zip(*((m.frobenius, m.decay.rate) for m in maps),
                                                                    strict=True))]  # fmt: skip
        ideal = statistics.fmean(analysis.ideal_width(each.shape) for each in maps)
        counts = [f"{statistics.fmean(each.width for each in maps):.0f}", f"{ideal:.0f}"]
        rows.append([kind, shapes, *(f"{figure:.3g}" for figure in figures), *counts])
    return head, rows


def write_tables(analysis: Analysis, folder: Path) -> None:
    """`changes.csv`, a row a source and map; `weights.csv`, a row a W₀; `values.csv`, singular values and gains."""
    changes = [
        {"source": source, "module": path, **place_of(path)._asdict(), **each.measures}
        for source, maps in analysis.changes.items()
        for path, each in maps.items()
    ]
    weights = [
        {
            "module": path,
            **place_of(path)._asdict(),
            "out": each.shape[0],
            "in": each.shape[1],
            **{f"q{number}": value for number, value in enumerate(each.quartiles, 1)},
            "frobenius": each.frobenius,
            **{f"decay_{name}": value for name, value in each.decay._asdict().items()},
            "width_5": each.width,
            "ideal_width_5": analysis.ideal_width(each.shape),
        }
        for path, each in analysis.weights.items()
    ]
    for name, rows in (("changes", changes), ("weights", weights), ("values", list(_values(analysis)))):
        write_rows(folder / f"{name}.csv", list(dict.fromkeys(column for row in rows for column in row)), rows)


def _values(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """Singular values of W₀ and ΔW by their numbers from 1, at most 64 of a matrix, and gains on W₀'s."""
    for path, weight in analysis.weights.items():
        for place in places(len(weight.sigma)):
            yield {"source": "W0", "module": path, "number": place + 1, "sigma": _at(weight.sigma, place)}
    for source, maps in analysis.changes.items():
        for path, each in maps.items():
            numbers = {**dict.fromkeys(places(len(each.sigma))), **dict.fromkeys(range(len(each.gains)))}
            for place in sorted(numbers):
                yield {
                    "source": source,
                    "module": path,
                    "number": place + 1,
                    "sigma": _at(each.sigma, place),
                    "gain": _at(each.gains, place),
                }


def _at(values: Tensor, place: int) -> str:
    return f"{float(values[place]):.6g}" if place < len(values) else ""


def _share(maps: Sequence[Changed], measure: str) -> str:
    found = share(maps, measure)
    return "–" if math.isnan(found) else f"{found:.1%}"
