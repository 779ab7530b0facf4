"""Runs that a study is made of: each is `lit-spectral fit` in a process and a folder of its own, and is made once."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.markup import escape

from lit_spectral.comparison.results import more_is_better
from lit_spectral.comparison.variants import Variant
from lit_spectral.datamodules.corpora import check_corpus
from lit_spectral.datamodules.files import read_split
from lit_spectral.errors import InputError, check_at_least
from lit_spectral.files import write_text
from lit_spectral.flags import add_texts
from lit_spectral.lightning_cli import SpectralCLI
from lit_spectral.retention import Retention
from lit_spectral.retention.command import named_corpora
from lit_spectral.retention.retention import check_prompts
from lit_spectral.retention.texts import PROMPTS
from lit_spectral.run_folder import is_written_to, remove_run
from lit_spectral.tasks import Task
from lit_spectral.terminal import VERBOSE, is_verbose

__all__ = [
    "ANSWERS",
    "FRONT",
    "SCORES",
    "Planned",
    "announce",
    "call",
    "check_texts",
    "claim",
    "finished",
    "fit",
    "parse_study",
    "planned",
    "read_flags",
    "read_record",
    "saves_last",
    "task_metric",
    "tell_failed",
]

# Flags of `fit` without a dot, that are handed on or refused by name.
_OF_FIT = {
    "ckpt_path",
    "data",
    "lr_scheduler",
    "model",
    "optimizer",
    "save_every_n_steps",
    "seed_everything",
    "trainer",
}
RECORD, COMMAND = "record.json", "command.json"
# What studies keep in its folder of what they have measured of a run that came to its end.
FRONT, SCORES, ANSWERS = "front.json", "scores.json", "answers.json"
# What a broken run goes on from, for a config that doesn't keep it. Without a metric `mode` says nothing, except that
# Lightning tells this from a config's own ModelCheckpoint by it.
SAVE_LAST = [
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    "--trainer.callbacks.filename=last",
    "--trainer.callbacks.mode=max",
    "--trainer.callbacks.save_on_exception=true",
    "--trainer.callbacks.enable_version_counter=false",
]


class Planned(NamedTuple):
    """A run.

    Args:
        variant: method and settings.
        seed: of all that is random.
        folder: its own.
        command: the flags of `fit` that it is.
        digests: of all files that it depends on.
        earlier: the record of the run whose checkpoint it goes on from.
    """

    variant: Variant
    seed: int
    folder: Path
    command: list[str]
    digests: list[str]
    earlier: Path | None = None

    @property
    def record(self) -> Path:
        """There once the run has come to its end."""
        return self.folder / RECORD

    @property
    def last(self) -> Path:
        """There once it has got anywhere."""
        return self.folder / "checkpoints" / "last.ckpt"


def parse_study(parser: argparse.ArgumentParser, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags of a study of several methods and seeds, and those that are for its runs.

    Args:
        parser: of the verb, which gets the flags that all studies have.
        args: of the command line.

    Raises:
        InputError: a flag that can't be read, a seed that there can't be.
    """
    parser.add_argument("--methods", nargs="+", action="extend", metavar="NAME",
                        help="the first is what the others are compared with; NAME=METHOD under a name of its own "
                        "(LoRA FCLoRA)")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", action="extend", type=int, metavar="N", help="(0 1 2)")
    add_texts(parser)
    # --flag=value in two, or one with a space in its value is taken for another of --methods.
    split = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    for flag in (arg for arg in split if arg.startswith("--") and "." not in arg):
        if flag not in parser._option_string_actions and flag.strip("-+") not in _OF_FIT:
            parser.error(f"unrecognized arguments: {flag}")
    given, rest = parser.parse_known_args(split)
    given.methods = given.methods or ["LoRA", "FCLoRA"]
    given.seeds = [0, 1, 2] if given.seeds is None else list(dict.fromkeys(given.seeds))
    if min(given.seeds) < 0 or max(given.seeds) >= 2**32:
        odd = min(given.seeds) if min(given.seeds) < 0 else max(given.seeds)
        raise InputError(f"{parser.prog.split()[-1]}: --seeds are 0 or more and below 2^32, not {odd}")
    check_at_least(0, limit=given.limit)
    return given, rest


def read_flags(configs: Sequence[Any], flags: Sequence[str]) -> SpectralCLI:
    """Have flags of `fit` read, and what they say made, before anything runs."""
    return SpectralCLI([*(f"--config={file}" for file in configs), *flags], run=False)


def check_texts(given: argparse.Namespace, task: Task) -> None:
    """InputError for texts of retention that can't be read, or not by such a task, before anything runs."""
    if given.corpora or given.sts or given.fit_head:
        Retention(named_corpora(given.corpora), given.sts, given.limit or None, fit_head=given.fit_head)
        for text in [*named_corpora(given.corpora).values(), *filter(None, [given.fit_head])]:
            if text == PROMPTS:
                check_prompts(task)
            else:
                check_corpus(text)
        if given.sts:
            read_split(given.sts, "validation")


def saves_last(cli: Any) -> bool:
    """Whether runs of the config leave `last.ckpt`, or shall leave nothing."""
    kept = [c for c in cli.trainer.callbacks if isinstance(c, ModelCheckpoint)]
    return not kept or any(c.filename == "last" or c.save_last for c in kept)


def task_metric(cli: Any, name: str | None) -> tuple[str, bool]:
    """The task's metric, and whether more of it is better."""
    best = [c for c in cli.trainer.callbacks if isinstance(c, ModelCheckpoint) and c.monitor is not None]
    metric: str = name or (str(best[0].monitor) if best else "val/loss")
    return metric, more_is_better(metric, [c.mode for c in best if c.monitor == metric])


def planned(
    variant: Variant,
    seed: int,
    place: Path,
    configs: Sequence[Any],
    digests: Sequence[str],
    cli: Any,
    given: argparse.Namespace,
) -> Planned:
    """A run of a variant.

    Args:
        variant: method and settings.
        seed: of all that is random.
        place: its folder.
        configs: files for `fit`.
        digests: of all files that it depends on.
        cli: the LightningCLI of the configs.
        given: of `parse_study`.
    """
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(place.parent.parent), "name": place.parent.name, "version": place.name},
    }
    flags = variant.flags()
    command = ["fit", *(f"--config={file}" for file in configs), *flags, f"--seed_everything={seed}"]
    command += [f"--data.seed={seed}"] if hasattr(cli.datamodule, "seed") else []
    if not any(flag.startswith("--model.method.seed=") for flag in flags):
        command.append(f"--model.method.seed={seed}")  # of random choices among singular vectors
    command += [f"--trainer.logger={json.dumps(logger)}", *([] if saves_last(cli) else SAVE_LAST)]
    if given.corpora or given.sts:
        measured = {"limit": given.limit or "null", "sts": given.sts, "fit_head": given.fit_head}
        measured["corpora"] = json.dumps(named_corpora(given.corpora)) if given.corpora else None
        command.append("--trainer.callbacks+=lit_spectral.callbacks.RetentionMonitor")
        command += [f"--trainer.callbacks.{key}={value}" for key, value in measured.items() if value]
    return Planned(variant, seed, place, command, [*digests])


def claim(planned: Planned, verb: str) -> str | None:
    """Write down what is run in a folder, or refuse one where something else was; returns why it can't be told.

    A study claims all its folders before anything runs, and `fit` each one again, of which nothing may be known then.

    Args:
        planned: the run.
        verb: of the study.

    Raises:
        InputError: the folder has a run of other settings, or one that went on from another one's checkpoint.
    """
    what, file = {"command": planned.command, "configs": planned.digests}, planned.folder / COMMAND
    if planned.earlier is not None and planned.earlier.exists():
        what["earlier"] = [hashlib.sha256(planned.earlier.read_bytes()).hexdigest()]
    if file.exists() and (planned.record.exists() or planned.last.exists()):
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            there, asked = set(before["command"]), set(planned.command)
        except (ValueError, KeyError, TypeError):
            return f"{file} is damaged, so that nobody knows what was run there; remove the folder"
        if before != what:
            differing = {"there": there - asked, "asked for": asked - there}
            told = [f"{side}: {', '.join(sorted(flags)[:3])}" for side, flags in differing.items() if flags]
            other = "; ".join(told) or "what the config says"
            if planned.earlier is not None and before == what | {"earlier": before.get("earlier")}:
                other = f"another run in {planned.earlier.parent} before it"
            raise InputError(
                f"{verb}: {planned.folder} has a run of other settings ({other}); remove it or give another "
                "--output_folder"
            )
    planned.folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(what, indent=1))
    return None


def finished(
    planned: Planned,
    title: str,
    verb: str,
    metric: str,
    failed: list[str],
    console: Console,
    expected: Sequence[str] = (),
) -> bool:
    """Have a run made, unless it is, and say so; whether it has come to its end.

    Args:
        planned: the run.
        title: what to call it.
        verb: of the study.
        metric: that the run is to log.
        failed: gets a line if it came to no end, other than that another process is at it.
        console: to say it on.
        expected: flags of `RunRecord`.
    """
    announce(title, planned, console)
    try:
        status = fit(planned, verb, expected, metric)
    except Timeout:
        console.print("another process is at it; run the same command again when that is done", soft_wrap=True)
        return False
    except InputError as error:
        failed.append(f"{title}: {error}")
        return False
    if status or not planned.record.exists():
        failed.append(title)
        return False
    return True


def announce(title: str, planned: Planned, console: Console) -> None:
    """Say which run comes next, or that it came to its end before."""
    if planned.record.exists():
        console.print(f"[dim]{escape(title)}: done before[/dim]", soft_wrap=True)
    else:
        console.rule(escape(title))


def tell_failed(failed: Sequence[str], console: Console) -> None:
    """A line for each run that came to no end."""
    for title in failed:
        console.print(f"[red]failed: {escape(title)}[/red]; the same command tries it again", soft_wrap=True)


def read_record(planned: Planned) -> dict[str, Any]:
    """What a run that came to its end has recorded; InputError for a file that is no record."""
    try:
        record = json.loads(planned.record.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not record.keys() >= {"metrics", "validated_step", "steps"}:
        raise InputError(f"{planned.record} is no record of a run; remove its folder")
    return record


def fit(planned: Planned, verb: str, expected: Sequence[str], metric: str) -> int:
    """Run it, from its last checkpoint if it has one, unless it has come to its end; returns the exit status.

    Args:
        planned: the run.
        verb: of the study.
        expected: flags of `RunRecord`.
        metric: that the run is to log.

    Raises:
        Timeout: another process is at it.
        InputError: as `claim`: since that was asked, another study may have been there.
    """
    with FileLock(planned.folder / ".lock", timeout=0):
        # Its own lock too: whoever started a run may be gone.
        if is_written_to(planned.folder):
            raise Timeout(str(planned.folder))
        if damage := claim(planned, verb):
            raise InputError(damage)
        if planned.record.exists():
            return 0
        recording = ["--trainer.callbacks+=lit_spectral.callbacks.RunRecord"]
        recording += [f"--trainer.callbacks.file={planned.record}"]
        recording += [f"--trainer.callbacks.monitor={metric}"] if metric.startswith("val") else []
        command = [*planned.command, *recording, *expected]
        if planned.last.exists():
            status = call([*command, f"--ckpt_path={planned.last}"])
            # Stopped between its last checkpoint and its record, it has nothing left to do, and is done again.
            if status or planned.record.exists():
                return status
        remove_run(planned.folder)  # what is not gone on with
        for name in (FRONT, SCORES, ANSWERS):  # of an earlier one, that was removed by hand
            (planned.folder / name).unlink(missing_ok=True)
        return call(command)


def call(command: list[str]) -> int:
    """`lit-spectral` in a process of its own. On Ctrl-C, which that gets too, it may take its time to save."""
    # -m imports from the current folder before all others: only where this process does so too.
    safe = {} if {"", os.getcwd()} & set(sys.path) else {"PYTHONSAFEPATH": "1"}
    # This process may be told to stop alone.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    command = [sys.executable, "-m", "lit_spectral", *command, *([VERBOSE] if is_verbose() else [])]
    with subprocess.Popen(command, env=os.environ | safe) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
        except SystemExit:
            process.terminate()
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
