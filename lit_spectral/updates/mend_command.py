"""`lit-spectral mend`: an adapter as training's constraints would have left it."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_spectral.errors import InputError, Parser
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.exports import check_empty
from lit_spectral.updates.flags import add_input_text, add_source, add_target
from lit_spectral.updates.mending import REPAIRS, mend
from lit_spectral.updates.sizes import Size, largest, size_of
from lit_spectral.updates.update import Update

__all__ = ["run"]


def run(args: list[str]) -> Path:
    """Read an adapter, mend it in the order of the flags, print a table, write it; returns its folder or file.

    Raises:
        InputError: a flag or value that there isn't; as sources, exports and repairs do.
    """
    given = _parse(args)
    place = Path(given.output)
    check_empty(place, given.to)
    from lit_spectral.updates import exports, sources  # which load what can read them all

    update = sources.read(given.source, given.backbone)
    backbone = Backbone(given.backbone or update.backbone, input_text=given.input_text)
    table = _table()
    _add(table, "as it is", _size(update, backbone))
    for name, value in given.repairs:
        update = mend(update, name, value, backbone)
        _add(table, f"{name} {value}", _size(update, backbone))
    console = Console()
    console.print(table)
    if update.whole:
        console.print(f"{len(update.whole)} tensors that were trained whole (heads, norms, biases) stay as they are")
    update = replace(update, origin={**update.origin, "mend": f"lit-spectral mend {shlex.join(args)}"})
    if given.backbone:
        update = replace(update, backbone=given.backbone)
    exports.write(update, place, given.to, consumer=given.consumer)
    print(f"mended: {place}")
    return place


class _Mend(argparse.Action):
    """Notes a repair behind those that stand before it."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Read its value, so that a mistake is told before any work."""
        namespace.repairs = [*namespace.repairs, (self.dest, REPAIRS[self.dest].read(values))]


def _parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lit-spectral mend",
        description="Mend an adapter after training, without data: repairs in the order in which they are given, the "
        "same one more than once if need be. What was trained whole (heads, norms, biases) stays as it is.",
        allow_abbrev=False,
    )
    add_source(parser)
    add_target(parser)
    repairs = parser.add_argument_group("repairs")
    for name, repair in REPAIRS.items():
        text: dict[str, Any] = {} if repair.default is None else {"nargs": "?", "const": repair.default}
        hidden = argparse.SUPPRESS
        flag = f"--{name}"
        repairs.add_argument(flag, action=_Mend, default=hidden, metavar=repair.metavar, help=repair.about, **text)
    add_input_text(parser)
    parser.set_defaults(repairs=[])
    given = parser.parse_args(args)
    if not given.repairs:
        raise InputError(f"mend: no repair is given; there are {', '.join(f'--{name}' for name in REPAIRS)}")
    return given


def _size(update: Update, backbone: Backbone) -> Size:
    changes = update.changes.items()
    return largest(size_of(delta.singular_values(backbone.behind(path, delta))) for path, delta in changes)


def _table() -> Table:
    table = Table(caption="‖ΔW‖₂ and rank: the largest of all maps; ‖ΔW‖_F: of all together")
    table.add_column("after")
    for heading in ("‖ΔW‖₂", "‖ΔW‖_F", "rank"):
        table.add_column(heading, justify="right")
    return table


def _add(table: Table, label: str, size: Size) -> None:
    table.add_row(label, f"{size.spectral:.4g}", f"{size.frobenius:.4g}", str(size.rank))
