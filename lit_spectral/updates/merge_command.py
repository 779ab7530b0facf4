"""`lit-spectral merge`: several adapters of one backbone made one."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_spectral.errors import InputError, Parser
from lit_spectral.terminal import show_notes
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
    show_notes()
    given = _parse(args)
    settings = {name: getattr(given, name) for name in _SETTINGS if getattr(given, name) is not None}
    checked(given.sources, given.rule, given.weights, settings, given.heads_of, given.rank, given.energy)
    from lit_spectral.updates import exports, sources
    from lit_spectral.updates.weights import Weights

    updates = {source: sources.read(source, given.backbone) for source in given.sources}
    weights = None
    if given.to == "merged" or any(update.needs_weights for update in updates.values()):
        folder = given.backbone or next((update.backbone for update in updates.values() if update.backbone), None)
        if folder is None:
            raise InputError("merge: the backbone is needed and no source says where it lies; give --backbone FOLDER")
        weights = Weights(folder)
    update, cut = merge(
        updates,
        given.rule,
        given.weights,
        rank=given.rank,
        energy=given.energy,
        heads_of=given.heads_of,
        base=weights,
        **settings,
    )
    place = Path(given.output)
    cut = {**cut, **exports.write(update, place, given.to, weights)}
    if cut:
        path = max(cut, key=lambda each: cut[each])
        print(f"cut off: at most {cut[path]:.2%} of a change, of {path}")
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
    about = "a .ckpt that fit wrote, a peft adapter, fine-tuned weights"
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=about)
    parser.add_argument("--backbone", metavar="FOLDER", help="where the backbone lies, if not where it was")
    about = "one for each source, in their order (1 for each); --weights=-1,1 where the first is negative"
    parser.add_argument("--weights", type=_numbers, metavar="W,W,…", help=about)
    parser.add_argument("--rule", default="add", metavar="NAME", help=f"{', '.join(RULES)} (%(default)s)")
    for name, (kind, metavar, text) in _SETTINGS.items():
        defaults = ", ".join(f"{rule} {row.settings[name]}" for rule, row in RULES.items() if name in row.settings)
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=f"{text} ({defaults})")
    parser.add_argument("--heads_of", metavar="SOURCE", help="whose heads are kept (those of the first that has some)")
    parser.add_argument("--rank", type=int, metavar="R", help="of each merged change at most; by a small SVD")
    about = "share of each merged change's squared singular values to keep, at the smallest rank that does"
    parser.add_argument("--energy", type=float, metavar="SHARE", help=about)
    about = "what to write (%(default)s)"
    parser.add_argument("--to", choices=("peft", "merged", "checkpoint"), default="peft", help=about)
    parser.add_argument("--output", required=True, metavar="PLACE", help="where")
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
