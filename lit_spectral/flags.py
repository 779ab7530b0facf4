"""Flags that several verbs have, each in the same words."""

from __future__ import annotations

from argparse import ArgumentParser

__all__ = ["SOURCE", "add_corpora", "add_model", "add_texts"]

# What SOURCE is.
SOURCE = "a .ckpt that fit wrote, an adapter of peft's, or a folder of fine-tuned weights"


def add_model(parser: ArgumentParser, required: bool = True) -> None:
    """`--checkpoint`, also `--adapter`, and `--backbone`: which model; unless required, a backbone alone will do."""
    about = SOURCE + ("" if required else "; none for the backbone alone")
    parser.add_argument("--checkpoint", "--adapter", required=required, metavar="SOURCE", help=about)
    parser.add_argument("--backbone", metavar="FOLDER", help="where the backbone lies, if not where it was")


def add_corpora(parser: ArgumentParser) -> None:
    """`--corpora`."""
    about = (
        "texts on which to measure what is forgotten: files, folders, python-docs, bookcorpus, finewiki, openwebtext, "
        "pg19, wikitext-2, wikitext-103, or prompts, those of the data that a decoder is validated on"
    )
    parser.add_argument("--corpora", nargs="+", action="extend", default=[], metavar="[NAME=]TEXT", help=about)


def add_texts(parser: ArgumentParser) -> None:
    """`--corpora`, `--sts`, `--fit_head` and `--limit`: on what to measure what a model has kept."""
    add_corpora(parser)
    parser.add_argument("--sts", metavar="FOLDER", help="sentence pairs in STS-B's form, for encoders")
    about = "for an encoder without a masked-language head: fit one on this text, once"
    parser.add_argument("--fit_head", metavar="TEXT", help=about)
    about = "windows, pages, lines or rows of each; 0 for all (%(default)s)"
    parser.add_argument("--limit", type=int, default=256, metavar="N", help=about)
