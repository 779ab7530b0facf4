"""`lit-spectral retain`: what a checkpoint's model has kept of its backbone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lit_spectral.checkpoint import load, log_folder
from lit_spectral.errors import Parser
from lit_spectral.evaluation.provenance import provenance
from lit_spectral.retention.retention import Retention

__all__ = ["named_corpora", "run"]

# From a measure to what it is of the base model.
_BASE = {
    "loss": "base_loss",
    "perplexity": "base_perplexity",
    "accuracy": "base_accuracy",
    "forgetting_loss": "base_entropy",
    "spearman": "base_spearman",
}


def run(args: list[str]) -> Path:
    """Measure, print a table of the backbone beside the adapted model, write JSON; returns its file.

    Raises:
        InputError: a flag that there isn't; as in `lit_spectral.checkpoint.load` and `Retention`.
    """
    given = _parse(args)
    task = load(given.checkpoint, given.backbone).to(given.device)
    retention = Retention(
        named_corpora(given.corpora), given.sts, given.limit or None, given.max_length, given.batch_size
    )
    retention.prepare(task)
    rounded = torch.autocast(torch.device(given.device).type, torch.bfloat16) if given.bf16 else nullcontext()
    with rounded:
        measured = retention.measure(task)
    Console().print(_table(measured))
    file = Path(given.output_path) if given.output_path else log_folder(given.checkpoint) / "retention.json"
    settings = {name: value for name, value in vars(given).items() if name != "output_path"}
    report: dict[str, Any] = {"retention": measured, "settings": settings, "model": task._identity(), **provenance()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1, default=str), encoding="utf-8")
    print(f"retention: {file}")
    return file


def _parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lit-spectral retain",
        description="What a checkpoint's model has kept of its backbone: perplexity (decoders), masked-token accuracy "
        "(encoders), forgetting loss, drift of sentence states; the same backbone without its adapters beside it.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a .ckpt that fit wrote")
    parser.add_argument("--backbone", metavar="FOLDER", help="where the backbone lies, if not where it was")
    parser.add_argument(
        "--corpora", nargs="+", default=[], metavar="[NAME=]TEXT",
        help="text files, folders, or bookcorpus, openwebtext, pg19, wikitext-2, wikitext-103",
    )  # fmt: skip
    parser.add_argument("--sts", metavar="FOLDER", help="sentence pairs in STS-B's form, for encoders")
    parser.add_argument("--limit", type=int, default=256, help="windows or lines of each; 0 for all (%(default)s)")
    parser.add_argument("--max_length", type=int, default=256, help="tokens of a window or line (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="windows or lines at a time (%(default)s)")
    parser.add_argument("--bf16", action="store_true", help="in bfloat16 by autocast, as bf16-mixed trains")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--output_path", metavar="FILE", help="JSON (retention.json in the run's log folder)")
    return parser.parse_args(args)


def named_corpora(given: list[str]) -> dict[str, str]:
    """From a name to a text, out of `NAME=TEXT`; a text without a name goes by its file's."""
    pairs = [text.partition("=") for text in given]
    return {(name if named else Path(name).stem): (path if named else name) for name, named, path in pairs}


def _table(measured: Mapping[str, float]) -> Table:
    table = Table()
    for heading in ("text", "measure", "backbone", "adapted", "change"):
        table.add_column(heading, justify="left" if heading in {"text", "measure"} else "right")
    for name, value in measured.items():
        text, _, measure = name.rpartition("/")
        if measure == "drift":
            table.add_row(text, measure, "0", f"{value:.4f}", f"{value:+.4f}")
        elif measure in _BASE:
            base = measured[f"{text}/{_BASE[measure]}"]
            table.add_row(text, measure.replace("_", " "), f"{base:.4f}", f"{value:.4f}", f"{value - base:+.4f}")
    return table
