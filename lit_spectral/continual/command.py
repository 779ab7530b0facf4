"""`lit-spectral continual`: a config a stage, trained on one after another, and what is left of the earlier ones."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from lit_spectral.comparison import fitting
from lit_spectral.comparison.fitting import Planned, parse_study
from lit_spectral.comparison.results import Comparison, write_csv
from lit_spectral.comparison.variants import Variant, folder_of, pairs_of, variants
from lit_spectral.continual.page import write_page
from lit_spectral.continual.results import Sequenced, comparison_of, matrix_table, write_scores
from lit_spectral.continual.rows import Row, Validation, measure, read_row, write_plan
from lit_spectral.continual.stages import BEFORE, HOW, JOINT, Stage, named_stages, read_stages, split_how, way
from lit_spectral.errors import InputError, Parser
from lit_spectral.files import check_place, write_text

__all__ = ["parse", "run"]

# Flags of how a model is trained.
_TRAINED = ("--model.method", "--model.optimizer", "--model.lr_scheduler")

# How this verb is called for one row of a matrix, in a process of its own.
ROW = "--row"


class _FailedError(Exception):
    """A run, or what measures it, came to no end."""


class _Study(NamedTuple):
    """What is the same for all sequences."""

    stages: list[Stage]
    joint: Stage | None
    how: dict[str, str]
    folder: Path
    given: argparse.Namespace
    console: Console


def run(args: list[str]) -> Path:
    """Train and measure what has not been yet, print tables, write CSV and page; returns the page's file.

    Args:
        args: of `lit-spectral continual`; what isn't its own are flags of `fit`.

    Raises:
        InputError: flags that can't be used; a folder with runs of other settings; nothing that came to its end.
    """
    if args[:1] == [ROW]:
        measure(Path(args[1]))
        return Path(args[1])
    given, rest = parse(args)
    configs = named_stages(given.stages)
    pairs, how = split_how(pairs_of(rest, "continual"), given.methods, given.how)
    compared, console = variants(given.methods, pairs, "continual"), Console()
    read = read_stages(configs | ({JOINT: given.joint} if given.joint else {}), compared, how, given)
    fitting.check_texts(given, read[0].cli.model)
    folder = Path(given.output_folder or Path("runs") / "continual" / "-".join(configs))
    check_place(folder / "index.html", "continual: --output_folder")
    study = _Study(read[: len(configs)], read[len(configs)] if given.joint else None, how, folder, given, console)
    plans = {(variant, seed): _plan(variant, seed, study) for seed in given.seeds for variant in compared}
    for each in (each for plan in plans.values() for each in plan):
        fitting.claim(each, "continual")
    found: list[Sequenced] = []
    failed: list[str] = []
    interrupted = False
    for number, ((variant, seed), plan) in enumerate(plans.items(), 1):
        sequence = Sequenced(variant, seed, how[variant.arm], plan[0].folder.parent)
        found.append(sequence)
        title = f"{number} of {len(plans)}: {variant.name}, seed {seed}"
        try:
            _train(sequence, plan, study, title, failed)
        except Timeout:
            at_it = "another process is at it; run the same command again when that is done"
            console.print(escape(f"{title}: {at_it}"), soft_wrap=True)
        except KeyboardInterrupt:
            interrupted = True
            break
    if not any(each.rows for each in found):
        fitting.tell_failed(failed, console)
        if interrupted:
            sys.exit(130)
        raise InputError("continual: no stage came to its end; what went wrong stands above")
    page = _show(comparison_of(compared, found, study.stages), found, study, args)
    fitting.tell_failed(failed, console)
    if failed or interrupted:
        sys.exit(130 if interrupted else 1)
    return page


def parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The verb's own flags, and those of `fit`; InputError for what can't be."""
    parser = Parser(
        prog="lit-spectral continual",
        description="Train on several configs one after another, with several methods and seeds; validate on all of "
        "them after each, and show what was learned and what was forgotten. What came to its end is not repeated.",
        epilog="All other flags go to `fit`, for every stage; several values, split by commas, make a sweep, and "
        "--NAME.X sets X for one of --methods, as in compare. --NAME.how chooses its way.",
        allow_abbrev=False,
    )
    about = "configs of fit in the order of training; of one task and backbone"
    parser.add_argument("--stages", nargs="+", required=True, metavar="NAME=CONFIG", help=about)
    about = (
        "chain: one adapter through all stages; stack: a new one a stage, on top of the earlier ones, frozen; after: "
        "the same, kept out of their row and column spaces (%(default)s)"
    )
    parser.add_argument("--how", default="chain", metavar="|".join(HOW), help=about)
    about = "a config whose data are those of all stages: training on it is the ceiling"
    parser.add_argument("--joint", metavar="CONFIG", help=about)
    about = "one for all stages (val/…; what each config's best checkpoint is by)"
    parser.add_argument("--metric", metavar="NAME", help=about)
    parser.add_argument("--output_folder", metavar="FOLDER", help="(runs/continual/STAGES)")
    return parse_study(parser, args)


def _plan(variant: Variant, seed: int, study: _Study) -> list[Planned]:
    """A run for each stage, and one for all of them together if that is asked for."""
    place = study.folder / folder_of(variant.name) / f"seed_{seed}"
    planned: list[Planned] = []
    for number, stage in enumerate(study.stages, 1):
        each = _planned(variant, seed, place / f"{number}_{stage.name}", stage, study)
        each.command.extend(way(study.how[variant.arm], planned[-1].last if planned else None))
        planned.append(each._replace(earlier=planned[-1].record) if planned else each)
    return [*planned, *([_planned(variant, seed, place / JOINT, study.joint, study)] if study.joint else [])]


def _planned(variant: Variant, seed: int, place: Path, stage: Stage, study: _Study) -> Planned:
    return fitting.planned(variant, seed, place, [stage.config], [stage.digest], stage.cli, study.given)


def _train(sequence: Sequenced, plan: list[Planned], study: _Study, title: str, failed: list[str]) -> None:
    """Have every stage trained and measured, and put what it came to into the sequence, up to the first that fails.

    Raises:
        Timeout: another process is at one.
    """
    stages = [*study.stages, *([study.joint] if study.joint else [])]
    broken = False
    for number, (planned, stage) in enumerate(zip(plan, stages, strict=True)):
        joint = stage is study.joint
        named = f"{title}, " + (
            "all stages at once" if joint else f"stage {number + 1} of {len(study.stages)}: {stage.name}"
        )
        if broken and not joint:
            continue
        try:
            record = _fitted(planned, stage, named, study.console)
            heads = {each.name: own.last for each, own in zip(study.stages, plan, strict=False)}
            if number == 0 and not stage.own_head:
                place = study.folder / BEFORE / f"seed_{planned.seed}{_apart(planned.variant)}"
                sequence.before = _row(planned, None, place, heads, study)
            row = _row(planned, stage, planned.folder, heads, study)
            for each in study.stages:
                if each.name in row and each.metric not in row[each.name]:
                    logged = ", ".join(row[each.name])
                    raise InputError(f"{each.name} logged no {each.metric}; give --metric, one of {logged}")
        except (_FailedError, InputError) as error:
            failed.append(f"{named}: {error}" if str(error) else named)
            broken = True
            continue
        sequence.commands.append(planned.command)
        if joint:
            sequence.joint = row
        else:
            sequence.rows.append(row)
            sequence.records.append(record)


def _fitted(planned: Planned, stage: Stage, title: str, console: Console) -> dict[str, Any]:
    """The record of a run, which is made if there is none; _FailedError where it comes to no end."""
    fitting.announce(title, planned, console)
    if fitting.fit(planned, "continual", [], stage.metric) or not planned.record.exists():
        raise _FailedError
    return fitting.read_record(planned)


def _row(
    planned: Planned, after: Stage | None, folder: Path, heads: dict[str, Path], study: _Study
) -> dict[str, dict[str, float]]:
    """A row of the matrix, which is measured where it isn't yet; _FailedError where that comes to no end.

    Args:
        planned: the run whose adapter is measured.
        after: its stage; None for the backbone alone.
        folder: where to keep what was measured.
        heads: from a stage to the checkpoint of its own run.
        study: whose stages it is measured on; of those with heads of their own, on those that have one by then.
    """
    own_head = after is not None and after.own_head
    on = study.stages[: study.stages.index(after) + 1] if after is not None and own_head else study.stages
    validations = []
    for stage in on:
        seeds = [f"--seed_everything={planned.seed}"]
        seeds += [f"--data.seed={planned.seed}"] if hasattr(stage.cli.datamodule, "seed") else []
        head = str(heads[stage.name]) if own_head and stage is not after else None
        command = [f"--config={stage.config}", *_shared(planned.variant), *seeds]
        validations.append(Validation(stage.name, command, stage.digest, head))
    row = Row(str(planned.last), validations, alone=after is None)
    folder.mkdir(parents=True, exist_ok=True)
    # All methods of a seed share the backbone's row.
    with FileLock(folder / ".lock", timeout=-1 if after is None else 0):
        if len(read_row(row, folder)) < len(on):
            status = fitting.call(["continual", ROW, str(write_plan(row, folder))])
            if status or len(read_row(row, folder)) < len(on):
                raise _FailedError("it could not be validated")
    return read_row(row, folder)


def _shared(variant: Variant) -> list[str]:
    """A variant's flags but for how it is trained, of which validating knows no more than the adapter."""
    return [flag for flag in variant.flags() if not flag.startswith(_TRAINED)]


def _apart(variant: Variant) -> str:
    """What tells the backbone's own scores under a variant's flags from those under others."""
    flags = _shared(variant)
    return f"_{hashlib.blake2b(repr(flags).encode(), digest_size=3).hexdigest()}" if flags else ""


def _show(comparison: Comparison, found: Sequence[Sequenced], study: _Study, args: Sequence[str]) -> Path:
    """Print the tables, write CSV and page."""
    console, folder = study.console, study.folder
    console.rule("What was learned, and what was forgotten")
    for variant in dict.fromkeys(each.variant for each in found if each.rows):
        theirs = [each for each in found if each.variant == variant]
        console.print(matrix_table(f"{escape(variant.name)}, {theirs[0].how}", theirs, study.stages))
    if comparison.runs:
        console.print(comparison.table())
        write_csv(comparison, folder)
        console.print(escape(f"table: {folder / 'table.csv'}, each sequence: {folder / 'runs.csv'}"), soft_wrap=True)
    write_scores(found, study.stages, folder / "scores.csv")
    page = folder / "index.html"
    write_text(page, write_page(comparison, found, study.stages, f"lit-spectral continual {shlex.join(args)}"))
    console.print(escape(f"all scores: {folder / 'scores.csv'}"), soft_wrap=True)
    console.print(f"page: [bold]{escape(str(page))}[/bold]", soft_wrap=True)
    return page
