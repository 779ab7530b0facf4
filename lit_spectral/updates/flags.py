"""Flags of the verbs that follow training, each in the same words."""

from __future__ import annotations

from argparse import ArgumentParser

from lit_spectral.errors import check_at_least, check_at_most, check_positive
from lit_spectral.flags import SOURCE
from lit_spectral.input_text import RANDOM
from lit_spectral.updates.exports import FORMS
from lit_spectral.updates.peft_folder import CONSUMERS

__all__ = ["add_input_text", "add_source", "add_target", "add_truncation", "check_truncation"]


def add_source(parser: ArgumentParser, several: bool = False) -> None:
    """SOURCE, or with `several` SOURCE… as `sources`, and `--backbone`."""
    if several:
        parser.add_argument("sources", nargs="+", metavar="SOURCE", help=f"each {SOURCE}")
    else:
        parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--backbone", metavar="FOLDER", help="where the backbone lies, if not where it was")


def add_target(parser: ArgumentParser) -> None:
    """`--to`, `--for` (as `consumer`) and `--output`."""
    about = "LoRA factors as peft loads them, a model with the changes in its weights, or a .ckpt (%(default)s)"
    parser.add_argument("--to", choices=FORMS, default="peft", help=about)
    about = "who is to load the factors, if less than peft: one rank, one that vLLM takes, no heads that it doesn't"
    parser.add_argument("--for", dest="consumer", choices=CONSUMERS, help=about)
    parser.add_argument("--output", required=True, metavar="PLACE", help="a new folder; of a checkpoint a new file")


def add_input_text(parser: ArgumentParser) -> None:
    """`--input_text`."""
    about = "what --input_rank, and --ball {of_outputs: …}, look at inputs on: random tokens, self (what a decoder's "
    about += "backbone says by itself), or a text as of retain's --corpora (%(default)s)"
    parser.add_argument("--input_text", default=RANDOM, metavar="TEXT", help=about)


def add_truncation(parser: ArgumentParser) -> None:
    """`--rank` and `--energy`."""
    about = "the largest of a change: the nearest change of that rank is kept"
    parser.add_argument("--rank", type=int, metavar="N", help=about)
    about = "share of the squared singular values of each change to keep, in (0, 1]"
    parser.add_argument("--energy", type=float, metavar="SHARE", help=about)


def check_truncation(rank: int | None, energy: float | None) -> None:
    """InputError for a rank below 1, or an energy that is no share."""
    check_at_least(1, rank=rank)
    check_positive(energy=energy)
    check_at_most(1, energy=energy)
