"""`lit-spectral retain`: what a checkpoint's model has kept of its backbone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lit_spectral.checkpoint import load, log_folder, usable_device
from lit_spectral.datamodules.corpora import check_corpus
from lit_spectral.errors import InputError, Parser, check_at_least
from lit_spectral.evaluation.provenance import provenance
from lit_spectral.files import check_place, write_text
from lit_spectral.flags import add_model, add_texts
from lit_spectral.precision import advise_bf16
from lit_spectral.retention.measures import BASE, told
from lit_spectral.retention.retention import Retention
from lit_spectral.retention.suite import Score, harness_names, is_one_of, retain, suite_scores
from lit_spectral.sweeps.values import add_sweeps, sweeps_of

__all__ = ["named_corpora", "run"]


def run(args: list[str]) -> Path:
    """Measure, print a table of the backbone beside the adapted model, write JSON; returns its file.

    Raises:
        InputError: a flag that there isn't; as in `lit_spectral.checkpoint.load` and `Retention`.
    """
    given = _parse(args)
    device = usable_device(given.device)
    rounded = torch.autocast(device.type, torch.bfloat16) if given.bf16 else nullcontext()
    limit = given.limit or None
    how = (limit, given.max_length, given.batch_size, given.fit_head, given.pages)
    if sweeps := sweeps_of(vars(given)):
        from lit_spectral.sweeps.retain import run_sweeps  # which stands on the command line's

        return run_sweeps(given, sweeps, Retention(named_corpora(given.corpora), given.sts, *how), device, rounded)
    task = load(given.checkpoint, given.backbone).to(device)
    if not given.bf16:
        advise_bf16(task.model, device, "--bf16")
    file = Path(given.output_path) if given.output_path else log_folder(given.checkpoint) / "retention.json"
    check_place(file, "retain: --output_path")
    settings = {name: value for name, value in vars(given).items() if name != "output_path"} | {"device": str(device)}
    report: dict[str, Any] = {"settings": settings, "model": task._identity(), **provenance()}
    if given.corpora or given.sts or not given.tasks:
        retention = Retention(named_corpora(given.corpora), given.sts, *how)
        retention.prepare(task)
        with rounded:
            report["retention"] = retention.measure(task)
        Console().print(_table(report["retention"]))
        _write(report, file)
    if given.tasks:
        with rounded:
            suite = (limit, given.num_fewshot, given.include_path, given.batch_size)
            scores = suite_scores(task, given.tasks, *suite)
        kept = [score for score in scores if not is_one_of(score.task, given.leave_out)]
        Console().print(_scores_table(scores, kept))
        _write(report | {"scores": [score._asdict() for score in scores], "retain": retain(kept)}, file)
    print(f"retention: {file}")
    return file


def _write(report: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(report, indent=1, default=str))


def _parse(args: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lit-spectral retain",
        usage="lit-spectral retain --checkpoint SOURCE [--corpora TEXT ...] [flags]",
        description="What a checkpoint's model has kept of its backbone: perplexity (decoders), masked-token accuracy "
        "(encoders), forgetting loss, drift of sentence states; the same backbone without its adapters beside it.",
        allow_abbrev=False,
    )
    add_model(parser)
    add_texts(parser)
    parser.add_argument("--tasks", nargs="+", action="extend", default=[], metavar="NAME",
                        help="of lm-evaluation-harness, as in evaluate: what a decoder lost on them")  # fmt: skip
    parser.add_argument("--leave_out", nargs="+", action="extend", default=[], metavar="NAME",
                        help="tasks that it was trained for, not part of the mean")  # fmt: skip
    parser.add_argument("--num_fewshot", type=int, metavar="N", help="examples in a task's prompt (the task's own)")
    parser.add_argument("--include_path", metavar="FOLDER", help="more tasks, as YAML")
    about = "each text of a corpus by itself, cut after --max_length tokens, in place of windows over all (decoders)"
    parser.add_argument("--pages", action="store_true", help=about)
    about = "tokens of a window, page or line (%(default)s)"
    parser.add_argument("--max_length", type=int, default=256, metavar="N", help=about)
    about = "windows, pages, lines or rows at a time (%(default)s)"
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help=about)
    parser.add_argument("--bf16", action="store_true", help="in bfloat16 by autocast, as bf16-mixed trains")
    parser.add_argument("--device", metavar="NAME", help="(the first GPU, or the CPU)")
    about = "JSON (retention.json, or sweep.json with its plot, in a checkpoint's log folder, else in the current one)"
    parser.add_argument("--output_path", metavar="FILE", help=about)
    add_sweeps(parser)
    about = "in sweeps: measure the task too, on the validation data of a config (config.yaml of a checkpoint's run)"
    parser.add_argument("--validate", nargs="?", const="", metavar="CONFIG", help=about)
    given = parser.parse_args(args)
    swept = sweeps_of(vars(given))
    if swept and given.tasks:
        raise InputError(f"retain: --{swept[0].repair} sweeps what texts show, not --tasks; leave one of them out")
    if given.validate is not None and not swept:
        raise InputError("retain: --validate is for sweeps, --scale 0:1:0.1 say; lit-spectral validate measures one")
    asked = harness_names(given.tasks)
    for left_out in given.leave_out:
        # A pattern among --tasks may stand for what is left out.
        if not any(is_one_of(name, [left_out]) or is_one_of(left_out, [name]) for name in asked):
            raise InputError(f"retain: --leave_out {left_out} is none of --tasks {' '.join(given.tasks)}")
    if given.tasks and all(is_one_of(name, given.leave_out) for name in asked):
        raise InputError("retain: --leave_out names every task; give one that the model wasn't trained for")
    for flag in ("num_fewshot", "include_path"):
        if getattr(given, flag) is not None and not given.tasks:
            raise InputError(f"retain: --{flag} is for --tasks; give these too, or leave it out")
    if given.fit_head is not None:
        check_corpus(given.fit_head)
    for most, name in ((given.batch_size, "batch_size"), (given.max_length, "max_length"), (given.limit, "limit")):
        if most >= 2**31:
            raise InputError(f"retain: --{name} is below 2^31, not {most}")
    check_at_least(0, limit=given.limit, num_fewshot=given.num_fewshot)
    check_at_least(1, batch_size=given.batch_size, max_length=given.max_length)
    return given


def named_corpora(given: list[str]) -> dict[str, str]:
    """From a name to a text, out of `NAME=TEXT`; a text without a name goes by its file's.

    Raises:
        InputError: two texts of one name.
    """
    found: dict[str, str] = {}
    for text in given:
        name, named, path = text.partition("=")
        if not named or Path(text).exists():
            name, path = Path(text).stem, text
        if not name or not path:
            raise InputError(f"corpora: {text!r} lacks a name or a text; give TEXT, or NAME=TEXT")
        if name in found:
            raise InputError(f"corpora: {found[name]} and {path} are both named {name}; give NAME={path}")
        found[name] = path
    return found


def _table(measured: Mapping[str, float]) -> Table:
    table = Table()
    for heading in ("text", "measure", "backbone", "adapted", "change"):
        table.add_column(heading, justify="left" if heading in {"text", "measure"} else "right")
    for name, value in measured.items():
        text, _, measure = name.rpartition("/")
        if measure == "drift":
            table.add_row(text, measure, "0", told(value), told(value, "+"))
        elif measure in BASE:
            base = measured[f"{text}/{BASE[measure]}"]
            table.add_row(text, measure.replace("_", " "), told(base), told(value), told(value - base, "+"))
    return table


def _scores_table(scores: Sequence[Score], kept: Sequence[Score]) -> Table:
    table = Table(caption="lost: in points of 100; Retain: their mean, lower is better")
    for heading in ("task", "score", "backbone", "adapted", "lost"):
        table.add_column(heading, justify="left" if heading in {"task", "score"} else "right")
    for score in scores:
        figures = (f"{score.base:.4f}", f"{score.adapted:.4f}", f"{100 * score.lost:+.2f}")
        table.add_row(score.task + ("" if score in kept else " (left out)"), score.metric, *figures)
    table.add_row("Retain", "", "", "", f"{retain(kept):+.2f}", style="bold")
    return table
