"""`lit-spectral export`: an adapter taken away, to peft and its like, as a merged model, or as a checkpoint."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lit_spectral.errors import Parser
from lit_spectral.updates.exports import check_empty, write
from lit_spectral.updates.flags import add_source, add_target, add_truncation, check_truncation

__all__ = ["errors_table", "run"]


def run(args: list[str]) -> Path:
    """Read an adapter, write it, print what was cut off; returns its folder or file.

    Raises:
        InputError: a flag that there isn't; as in `sources.read` and `exports.write`.
    """
    given = _parse(args)
    place = Path(given.output)
    check_empty(place, given.to)
    from lit_spectral.updates import sources  # which loads what can read them all

    update = sources.read(given.source, given.backbone, given.rank, given.energy)
    update = replace(update, origin={**update.origin, "export": f"lit-spectral export {shlex.join(args)}"})
    errors = write(update, place, given.to, rank=given.rank, energy=given.energy, consumer=given.consumer)
    if errors:
        Console().print(errors_table(errors))
    print(f"{given.to}: {place}")
    return place


def errors_table(errors: Mapping[str, float]) -> Table:
    """The maps of which most was cut off, up to ten, the most first."""
    table = Table(caption=f"cut off, as a share of ‖ΔW‖; of {len(errors)} maps, all of them in README.md")
    table.add_column("map")
    table.add_column("error", justify="right")
    for path in sorted(errors, key=lambda path: -errors[path])[:10]:
        table.add_row(path, f"{errors[path]:.3g}")
    return table


def _parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lit-spectral export",
        description="Write an adapter as LoRA that peft, vLLM or llama.cpp load, with equal outputs, as a merged "
        "model, or as a checkpoint; exact, or truncated with the error stated by layer.",
        allow_abbrev=False,
    )
    add_source(parser)
    add_target(parser)
    add_truncation(parser)
    given = parser.parse_args(args)
    check_truncation(given.rank, given.energy)
    return given
