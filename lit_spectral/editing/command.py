"""`lit-spectral edit`: facts that fine-tuning changes, how well it does, and what else changes."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape

from lit_spectral.comparison import fitting
from lit_spectral.comparison.fitting import Planned, parse_study
from lit_spectral.comparison.results import Run
from lit_spectral.comparison.variants import Variant, folder_of, pairs_of, variants
from lit_spectral.datamodules import Edits
from lit_spectral.datamodules.edits import Edit, Probe
from lit_spectral.editing.bench import Bench
from lit_spectral.editing.making import make
from lit_spectral.editing.page import write_page
from lit_spectral.editing.results import Adapted, Results
from lit_spectral.errors import InputError, Parser, check_at_least
from lit_spectral.files import check_place, write_text
from lit_spectral.paths import config_file

__all__ = ["parse", "run"]

# Of a set that is made, and the flags that are for it alone.
EDITS, CONFIDENCE = 100, 0.3
FOR_MAKING = ("--backbone", "--confidence")


class _Taught(NamedTuple):
    """A run, and which edits it is taught."""

    planned: Planned
    first: int
    edits: list[Edit]


def run(args: list[str]) -> Path:
    """Train and measure what has not been yet, print the table, write CSV and page; returns the page's file.

    With `--make` it writes a set of edits instead, and returns its folder.

    Args:
        args: of `lit-spectral edit`; what isn't its own are flags of `fit`.

    Raises:
        InputError: flags that can't be used, edits that can't be made; a folder with runs of other settings; no run
            that came to its end.
    """
    given, rest = parse(args)
    if given.make:
        return _make(given)
    files = [config_file(name) for name in given.config]
    compared, console = variants(given.methods, pairs_of(rest, "edit"), "edit"), Console()
    folder = Path(given.output_folder or Path("runs") / "edit" / Path(given.config[-1]).stem)
    read = {variant: fitting.read_flags(given.config, variant.flags()) for variant in compared}
    fitting.check_texts(given, read[compared[0]].model)
    data = _data(read[compared[0]].datamodule, given.config)
    edits, probes = _set(data, given)
    check_place(folder / "index.html", "edit: --output_folder")
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    plan = list(_plan(read, edits, folder, digests, given))
    for each in plan:
        fitting.claim(each.planned, "edit")
    failed: list[str] = []
    how = ("edit", "val/loss", failed, console)
    done = [each for each in plan if fitting.finished(each.planned, _title(each, plan), *how)]
    bench = Bench(folder, edits, probes)
    adapted: list[Adapted] = []
    interrupted = False
    for each in done:
        try:
            measured = _measured(each, bench, read, _title(each, plan), failed, console)
        except KeyboardInterrupt:
            interrupted = True
            break
        adapted += [] if measured is None else [measured]
    fitting.tell_failed(failed, console)
    if not adapted:
        if interrupted:
            sys.exit(130)
        raise InputError("edit: no run came to its end; what went wrong stands above")
    results = Results(compared, edits, bench.probes, bench.before, adapted)
    page = _show(results, folder, Path(given.config[-1]).stem, args, console)
    if failed or interrupted:
        sys.exit(130 if interrupted else 1)
    return page


def parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The verb's own flags, and those of `fit`; InputError for what can't be."""
    parser = Parser(
        prog="lit-spectral edit",
        description="Teach adapters new answers to prompts, some edits at a time, and measure how many are learned and "
        "what becomes of unrelated prompts. What came to its end is not repeated.",
        epilog="All other flags go to `fit`, as in compare: sweeps, and --NAME.X for one of --methods. The config's "
        "data are Edits; its trainer.max_steps is of each adapter.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="of fit; may be repeated")
    about = "edits of the set, from its start (all); with --make how many to make (100)"
    parser.add_argument("--edits", type=int, metavar="N", help=about)
    parser.add_argument("--at_once", type=int, metavar="N", help="edits that one adapter is taught (all)")
    about = "unrelated prompts at most, from the start of theirs; 0 for none (%(default)s)"
    parser.add_argument("--unrelated", type=int, default=500, metavar="N", help=about)
    parser.add_argument("--output_folder", metavar="FOLDER", help="(runs/edit/CONFIG)")
    about = "write a set of edits there, of facts that --backbone knows, and stop"
    parser.add_argument("--make", metavar="FOLDER", help=about)
    parser.add_argument("--backbone", metavar="FOLDER", help="for --make: a decoder")
    about = "for --make: how likely the backbone holds what it knows, at least (0.3)"
    parser.add_argument("--confidence", type=float, metavar="P", help=about)
    given, rest = parse_study(parser, args)
    check_at_least(1, edits=given.edits, at_once=given.at_once)
    check_at_least(0, unrelated=given.unrelated)
    if given.make:
        flags = {arg.partition("=")[0] for arg in args if arg.startswith("--")}
        if other := sorted(flags - {"--make", *FOR_MAKING, "--edits"}):
            raise InputError(f"edit: --make does not take {', '.join(other)}; train by a command of its own")
        if not given.backbone:
            raise InputError("edit: --make is of what a backbone knows; give --backbone too")
        if given.confidence is not None and not 0 < given.confidence <= 1:
            raise InputError(f"edit: --confidence is a probability, above 0 and at most 1, not {given.confidence:g}")
    elif stray := [flag for flag in FOR_MAKING if getattr(given, flag.strip("-")) is not None]:
        raise InputError(f"edit: {stray[0]} is for --make; leave it out (a run's backbone is --model.backbone)")
    elif not given.config:
        raise InputError("edit: --config is missing; give one whose data are Edits, such as configs/edit_own.yaml")
    return given, rest


def _make(given: argparse.Namespace) -> Path:
    folder = Path(given.make)
    confidence = CONFIDENCE if given.confidence is None else given.confidence
    edits, unrelated = make(given.backbone, folder, given.edits or EDITS, confidence)
    print(f"{edits} edits: {folder / 'train.jsonl'}, {unrelated} unrelated prompts: {folder / 'unrelated.jsonl'}")
    return folder


def _data(data: Any, configs: Sequence[str]) -> Edits:
    if not isinstance(data, Edits):
        raise InputError(f"edit: the data of {configs[-1]} are {type(data).__name__}; give a config with --data Edits")
    if data.first or data.count is not None:
        raise InputError("edit: data.first and data.count are not for the runs; give --edits and --at_once")
    return data


def _set(data: Edits, given: argparse.Namespace) -> tuple[list[Edit], list[Probe]]:
    edits = data.edits(0, given.edits)
    if given.edits and given.edits > len(edits):
        raise InputError(f"edit: --edits {given.edits}: {data.path} has {len(edits)} that are used; give less")
    probes = data.probes(len(edits), given.unrelated) if given.unrelated else []
    if given.unrelated and not probes:
        print("no unrelated prompts: give --data.unrelated, or fewer --edits", flush=True)
    return edits, probes


def _plan(
    read: Mapping[Variant, Any],
    edits: Sequence[Edit],
    folder: Path,
    digests: Sequence[str],
    given: argparse.Namespace,
) -> Iterator[_Taught]:
    """A run for each seed, variant and batch of edits."""
    size = given.at_once or len(edits)
    for seed in given.seeds:
        for variant, cli in read.items():
            for number, first in enumerate(range(0, len(edits), size)):
                taught = list(edits[first : first + size])
                place = folder / folder_of(variant.name) / f"seed_{seed}" / f"batch_{number}"
                files = [*digests, _digest(taught)]
                planned = fitting.planned(variant, seed, place, given.config, files, cli, given)
                if given.corpora or given.sts:
                    # An epoch of some edits takes less time than these do: before and after are what the study shows.
                    planned.command.append("--trainer.callbacks.every_n_epochs=0")
                planned.command.extend([f"--data.first={first}", f"--data.count={len(taught)}"])
                yield _Taught(planned, first, taught)


def _title(taught: _Taught, plan: Sequence[_Taught]) -> str:
    planned, last = taught.planned, taught.first + len(taught.edits)
    return (
        f"{plan.index(taught) + 1} of {len(plan)}: {planned.variant.name}, seed {planned.seed}, "
        f"edits {taught.first + 1} to {last}"
    )


def _measured(
    taught: _Taught, bench: Bench, read: Mapping[Variant, Any], title: str, failed: list[str], console: Console
) -> Adapted | None:
    """What an adapter came to; None where it can't be measured, which is told among what failed."""
    planned = taught.planned
    numbers = range(taught.first, taught.first + len(taught.edits))
    console.print(f"[dim]{escape(title)}: what it says now[/dim]", soft_wrap=True)
    try:
        record = fitting.read_record(planned)
        found = bench.measure(planned, read[planned.variant], numbers)
    except InputError as error:
        failed.append(f"{title}: {error}")
        return None
    run = Run(planned.variant, planned.seed, record, planned.folder, planned.command)
    return Adapted(planned.variant, planned.seed, taught.first, found, run)


def _digest(edits: Sequence[Edit]) -> str:
    return hashlib.sha256(json.dumps(edits).encode()).hexdigest()


def _show(results: Results, folder: Path, name: str, args: Sequence[str], console: Console) -> Path:
    """Print the table, write CSV and page."""
    console.rule("What was learned, and what else has changed")
    console.print(results.table())
    results.write_csv(folder)
    page = folder / "index.html"
    title = f"{name}: {len(results.edits)} edits by {', '.join(variant.name for variant in results.variants)}"
    write_text(page, write_page(results, title, f"lit-spectral edit {shlex.join(args)}"))
    console.print(escape(f"table: {folder / 'table.csv'}, each answer: edits.csv, unrelated.csv"), soft_wrap=True)
    console.print(f"page: [bold]{escape(str(page))}[/bold]", soft_wrap=True)
    return page
