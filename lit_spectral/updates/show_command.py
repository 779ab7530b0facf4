"""`lit-spectral spectra`: how large an adapter's changes are, map by map, and where in the backbone they lie."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from lit_spectral.bars import track
from lit_spectral.errors import Parser, check_at_least
from lit_spectral.files import check_place, written
from lit_spectral.spectra.cache import SVDCache
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.delta import Delta
from lit_spectral.updates.sizes import share_inside, size_of

__all__ = ["Layer", "layers", "run"]


class Layer(NamedTuple):
    """One map's change: its singular values (r,); and where W₀ was looked at, ‖W₀‖₂ and the shares of ΔW.

    The shares are those of ‖ΔW‖_F² within W₀'s leading left and right singular vectors.
    """

    kind: str
    sigma: Tensor
    backbone_norm: float | None = None
    left_share: float | None = None
    right_share: float | None = None


def layers(changes: Mapping[str, Delta], backbone: Backbone, leading: int = 0) -> dict[str, Layer]:
    """The changes of an update by path; beside W₀'s `leading` singular vectors unless that is 0.

    Raises:
        InputError: W₀ is needed and can't be had, or `leading` is above what a W₀ has.
    """
    top = SVDCache().singular_triplets(backbone.of(changes), "top", leading) if leading else {}
    found = {}
    for path, delta in track(changes.items(), "singular values"):
        kind = "low-rank" if delta.is_thin else "dense" if delta.hadamard is None else "times W₀"
        weight = backbone.behind(path, delta)
        if not leading:
            found[path] = Layer(kind, delta.singular_values(weight))
            continue
        u, sigma, v = delta.svd(weight)
        base = top[path]
        shares = (share_inside(u, sigma, base.u), share_inside(v, sigma, base.v))
        found[path] = Layer(kind, sigma, float(base.sigma[0]), *shares)
    return found


def run(args: list[str]) -> None:
    """Print the table, and write the plot.

    Raises:
        InputError: a flag that there isn't; as sources do, and `layers`.
    """
    given = _parse(args)
    if given.plot is not None:
        check_place(given.plot, "spectra: --plot")
    from lit_spectral.updates import sources

    update = sources.read(given.source, given.backbone)
    leading = given.leading if given.backbone else 0
    found = layers(update.changes, Backbone(given.backbone or update.backbone), leading)
    console = Console()
    console.print(_table(found, leading))
    if update.whole:
        console.print(f"trained whole: {', '.join(map(escape, update.whole))}")
    if given.plot is not None:
        _plot({path: layer.sigma for path, layer in found.items()}, given.plot)
        print(f"plot: {given.plot}")


def _parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lit-spectral spectra",
        description="How large the changes of an adapter are, map by map; with --backbone how they lie beside W₀.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="a .ckpt that fit wrote, a peft adapter, fine-tuned weights")
    parser.add_argument("--backbone", metavar="FOLDER", help="the backbone's folder: show W₀'s norm and the shares too")
    about = "W₀'s leading singular vectors of which the shares are (%(default)s)"
    parser.add_argument("--leading", type=int, default=16, metavar="K", help=about)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the singular values")
    given = parser.parse_args(args)
    check_at_least(1, leading=given.leading)
    return given


def _table(found: Mapping[str, Layer], leading: int) -> Table:
    beside = ("‖W₀‖₂", f"in U_{leading}", f"in V_{leading}") if leading else ()
    table = Table(
        box=SIMPLE_HEAD,
        padding=0,
        collapse_padding=True,
        caption=f"in U_{leading}, V_{leading}: share of ‖ΔW‖_F²" if leading else None,
    )
    # What all paths begin with stands above them, and figures are not cut, so that it fits a terminal of 80 characters.
    names = takewhile(lambda each: len({*each}) == 1, zip(*(path.split(".") for path in found), strict=False))
    begin = ".".join(each[0] for each in names) if len(found) > 1 else ""
    table.add_column(escape(f"map of\n{begin}") if begin else "map", overflow="fold", min_width=16)
    table.add_column("ΔW", no_wrap=True)
    for heading in ("rank", "‖ΔW‖₂", "‖ΔW‖_F", "stable\nrank", *beside):
        table.add_column(heading, justify="right", no_wrap=True)
    for path, layer in found.items():
        size = size_of(layer.sigma)
        row = [str(size.rank), f"{size.spectral:.4g}", f"{size.frobenius:.4g}", f"{size.stable_rank:.2f}"]
        if leading:
            row += [f"{layer.backbone_norm:.4g}", f"{layer.left_share:.1%}", f"{layer.right_share:.1%}"]
        table.add_row(escape(path.removeprefix(f"{begin}.")), layer.kind, *row)
    return table


def _plot(values: Mapping[str, Tensor], file: Path) -> None:
    """A panel for each kind of map, a line for each layer, first to last from dark to light."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds: dict[str, list[Tensor]] = defaultdict(list)
    for path, sigma in values.items():
        kinds[path.rpartition(".")[2]].append(sigma[: max(1, size_of(sigma).rank)])
    columns = min(4, max(1, len(kinds)))
    rows = max(1, -(-len(kinds) // columns))
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    for panel, (kind, lines) in zip(panels, kinds.items(), strict=False):
        for sigma, colour in zip(lines, colormaps["viridis"](torch.linspace(0, 0.9, len(lines)).numpy()), strict=True):
            panel.semilogy(range(1, len(sigma) + 1), sigma.clamp_min(1e-30), color=colour, marker=".", linewidth=1)
        panel.set(title=kind.replace("$", r"\$"), xlabel="index", ylabel="singular value of ΔW")
        panel.label_outer()
        panel.grid(alpha=0.25)
    for panel in list(figure.axes)[len(kinds) :]:
        panel.set_axis_off()
    figure.suptitle("a line for each layer, from the first (dark) to the last (light)", fontsize="small")
    with written(file) as scratch:
        FigureCanvasAgg(figure).print_figure(scratch, format="png", dpi=150)
