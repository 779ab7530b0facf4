"""`lit-spectral merge`: several adapters of one backbone made one."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lit_spectral.errors import InputError, Parser
from lit_spectral.updates.export_command import errors_table
from lit_spectral.updates.exports import check_empty
from lit_spectral.updates.flags import add_source, add_target, add_truncation
from lit_spectral.updates.merge_rules import RULES
from lit_spectral.updates.merging import checked, merge

__all__ = ["run"]

# Of a rule: type, placeholder, and what it is.
_SETTINGS = {
    "density": (float, "SHARE", "of the entries that are kept of each change, the largest or, by dare, drawn ones"),
    "seed": (int, "N", "of what is drawn"),
}


def run(args: list[str]) -> Path:
    """Read the sources, merge them, write what comes of it, say what a rank or an energy cut off; returns the place.

    Raises:
        InputError: a flag that there isn't; as in `merging.merge`, and as sources and exports do.
    """
    given = _parse(args)
    settings = {name: getattr(given, name) for name in _SETTINGS if getattr(given, name) is not None}
    checked(given.sources, given.rule, given.weights, settings, given.heads_of, given.rank, given.energy)
    place = Path(given.output)
    check_empty(place, given.to)
    from lit_spectral.updates import exports, sources  # which load what can read them all
    from lit_spectral.updates.backbone import Backbone

    updates = {source: sources.read(source, given.backbone) for source in given.sources}
    named = given.backbone or next((update.backbone for update in updates.values() if update.backbone), "")
    needed = any(update.needs_weights for update in updates.values())
    update, cut = merge(
        updates,
        given.rule,
        given.weights,
        rank=given.rank,
        energy=given.energy,
        heads_of=given.heads_of,
        base=Backbone(named).weights if needed else None,
        **settings,
    )
    update = replace(
        update, backbone=named, origin={**update.origin, "merge": f"lit-spectral merge {shlex.join(args)}"}
    )
    exports.write(update, place, given.to, consumer=given.consumer)
    if cut:
        Console().print(errors_table(cut))
    print(f"merged: {place}")
    return place


def _parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lit-spectral merge",
        description="Make one adapter of several of one backbone, of any methods and ranks. Changes of linear maps are "
        "merged by a rule; heads are those of one source; norms, biases and embeddings that were trained must be one "
        "source's alone, or the same in all.",
        allow_abbrev=False,
    )
    add_source(parser, several=True)
    about = "one for each source, in their order (1 for each); --weights=-1,1 where the first is negative"
    parser.add_argument("--weights", type=_numbers, metavar="W,W,…", help=about)
    parser.add_argument("--rule", default="add", metavar="NAME", help=f"{', '.join(RULES)} (%(default)s)")
    for name, (kind, metavar, text) in _SETTINGS.items():
        defaults = ", ".join(f"{rule} {row.settings[name]}" for rule, row in RULES.items() if name in row.settings)
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=f"{text} ({defaults})")
    parser.add_argument("--heads_of", metavar="SOURCE", help="whose heads are kept (those of the first that has some)")
    add_truncation(parser)
    add_target(parser)
    given = parser.parse_args(args)
    twice = next((source for source in given.sources if given.sources.count(source) > 1), None)
    if twice is not None:
        raise InputError(f"merge: {twice} is given twice; give it once, with the sum of its weights")
    return given


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; give --weights 1,1,-0.5") from error
