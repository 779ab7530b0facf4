"""`lit-spectral compare`: one config, several methods, several seeds."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from lit_spectral.comparison import fitting
from lit_spectral.comparison.fitting import FRONT, Planned, parse_study
from lit_spectral.comparison.front_view import Fronts, scales_of
from lit_spectral.comparison.page import write_page
from lit_spectral.comparison.records import Records
from lit_spectral.comparison.results import Comparison, Run, write_csv
from lit_spectral.comparison.variants import Variant, folder_of, pairs_of, variants
from lit_spectral.errors import InputError, Parser, check_at_least
from lit_spectral.files import check_place, write_text
from lit_spectral.lightning_cli import SpectralCLI
from lit_spectral.paths import config_file
from lit_spectral.retention.command import named_corpora
from lit_spectral.sweeps import sweeps_of

__all__ = ["run"]


def run(args: list[str]) -> Path:
    """Run what has not been run yet, then print the table and write CSV and page; returns the page's file.

    Args:
        args: of `lit-spectral compare`; what isn't its own are flags of `fit`.

    Raises:
        InputError: flags that can't be used; a folder with runs of other settings; no run that came to its end.
    """
    given, rest = _parse(args)
    files = [config_file(name) for name in given.config]
    console = Console()
    compared = variants(given.methods, pairs_of(rest))
    folder = Path(given.output_folder or Path("runs") / "compare" / Path(given.config[-1]).stem)
    cli = _check(compared, given)
    metric, higher = fitting.task_metric(cli, given.metric)
    rounded = str(cli.trainer.precision).startswith("bf16")
    configs = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    plan = [_planned(variant, seed, folder, configs, cli, given) for seed in given.seeds for variant in compared]
    check_place(folder / "index.html", "compare: --output_folder")
    if given.records:
        check_place(Path(given.records), "compare: --records")
    records = Records(Path(given.records)) if given.records else None
    for planned in plan:
        fitting.claim(planned, "compare")
    runs: list[Run] = []
    failed: list[str] = []
    interrupted = False
    for number, planned in enumerate(plan, 1):
        title = f"{number} of {len(plan)}: {planned.variant.name}, seed {planned.seed}"
        if records and (before := _kept(records, planned, configs, _scales(given) if given.front else None)):
            console.print(f"[dim]{escape(title)}: done before, in {escape(given.records)}[/dim]", soft_wrap=True)
            try:
                _check_metric(before.record, metric, given.records)
            except InputError as error:
                failed.append(f"{title}: {error}")
            else:
                runs.append(before)
            continue
        expected = [] if given.unmatched else _expected(planned, runs, compared)
        try:
            if not fitting.finished(planned, title, "compare", metric, failed, console, expected):
                continue
            if given.front and not _scaled(planned, given, rounded):
                failed.append(f"{title}: its scales could not be measured")
                continue
            recorded = _recorded(planned, metric, given.front)
        except KeyboardInterrupt:
            interrupted = True
            break
        except InputError as error:
            failed.append(f"{title}: {error}")
            continue
        runs.append(recorded)
        if records:
            records.add(recorded, compared.index(planned.variant), configs, metric, higher)
    if not runs:
        fitting.tell_failed(failed, console)
        if interrupted:
            sys.exit(130)
        raise InputError("compare: no run came to its end; what went wrong stands above")
    comparison = Comparison(compared, runs, metric, higher)
    fronts = Fronts(comparison, given.within) if given.front else None
    page = _show(comparison, fronts, folder, Path(given.config[-1]).stem, args, console)
    fitting.tell_failed(failed, console)
    if failed or interrupted:
        sys.exit(130 if interrupted else 1)
    return page


def _recorded(planned: Planned, metric: str, scaled: bool) -> Run:
    """A run that came to its end; InputError for a record that is none, or lacks the metric."""
    record = fitting.read_record(planned)
    _check_metric(record, metric, planned.folder)
    scales = scales_of(planned.folder / FRONT) if scaled else None
    return Run(planned.variant, planned.seed, record, planned.folder, planned.command, scales)


def _kept(records: Records, planned: Planned, configs: Sequence[str], asked: set[float] | None) -> Run | None:
    """What records have of a run, at the scales of ΔW that are asked for, if at any; None where they lack one."""
    found = records.find(planned.variant, planned.folder, planned.command, configs)
    if found is None or asked is None:
        return found and replace(found, scales=None)
    scales = {scale: measured for scale, measured in (found.scales or {}).items() if scale in asked}
    return replace(found, scales=scales) if scales.keys() == asked else None


def _check_metric(record: dict[str, Any], metric: str, where: Path | str) -> None:
    if metric not in record["metrics"]:
        logged = ", ".join(record["metrics"])
        raise InputError(f"{where} logged no {metric}; give --metric, one of {logged}")


def _show(
    comparison: Comparison, fronts: Fronts | None, folder: Path, title: str, args: Sequence[str], console: Console
) -> Path:
    """Print the tables, write CSV and page."""
    console.rule("What was learned, and what was forgotten")
    console.print(comparison.table())
    if fronts is not None:
        console.print(fronts.table())
        fronts.write_csv(folder / "fronts.csv")
    for run in comparison.runs:
        if run.record["validated_step"] != run.record["steps"]:
            when = f"at step {run.record['validated_step']} of {run.record['steps']}"
            console.print(escape(f"{run.folder}: validated last {when}; its metrics are of then"), soft_wrap=True)
    write_csv(comparison, folder)
    page = folder / "index.html"
    write_text(page, write_page(comparison, fronts, title, f"lit-spectral compare {shlex.join(args)}"))
    console.print(escape(f"table: {folder / 'table.csv'}, each run: {folder / 'runs.csv'}"), soft_wrap=True)
    console.print(f"page: [bold]{escape(str(page))}[/bold]", soft_wrap=True)
    return page


def _parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="lit-spectral compare",
        description="Fit a config with several methods and seeds, and show side by side what was learned, what was "
        "forgotten, how far the weights moved, and what it cost. Runs that came to their end are not repeated.",
        epilog="All other flags go to `fit`. Several values, split by commas, make a sweep: --model.method.sigma_bar "
        "q1,q2 for the methods that have it, --FCLoRA.ball none,0.5 for one method, --LoRA.model.optimizer.lr 1e-3.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, action="append", metavar="FILE", help="of fit; may be repeated")
    parser.add_argument("--metric", metavar="NAME", help="the task's (val/…; what the config's best checkpoint is by)")
    about = "measure every run at --scales of its ΔW too, and compare what methods reach at best"
    parser.add_argument("--front", action="store_true", help=about)
    about = "of ΔW, for --front, beside 1 (%(default)s)"
    parser.add_argument("--scales", default="0.2,0.4,0.6,0.8", metavar="A,…", help=about)
    about = "for --front: look so far below the first method's best metric (%(default)s)"
    parser.add_argument("--within", type=float, default=0.0, metavar="X", help=about)
    parser.add_argument("--unmatched", action="store_true", help="compare whatever their numbers of parameters")
    parser.add_argument("--output_folder", metavar="FOLDER", help="(runs/compare/CONFIG)")
    about = "JSONL that outlives the folder: runs that it has are not repeated, those that end are added to it"
    parser.add_argument("--records", metavar="FILE", help=about)
    given, rest = parse_study(parser, args)
    check_at_least(0, within=given.within)
    sweeps_of({"scale": given.scales})
    if given.front and not (given.corpora or given.sts):
        raise InputError("compare: --front is of score and retention; give --corpora or --sts too")
    return given, rest


def _check(compared: Sequence[Variant], given: argparse.Namespace) -> SpectralCLI:
    """Have every variant's flags read before anything runs; returns the last one's LightningCLI."""
    for variant in compared:
        cli = fitting.read_flags(given.config, variant.flags())
    fitting.check_texts(given, cli.model)
    return cli


def _planned(
    variant: Variant, seed: int, folder: Path, digests: Sequence[str], cli: SpectralCLI, given: argparse.Namespace
) -> Planned:
    place = folder / folder_of(variant.name) / f"seed_{seed}"
    return fitting.planned(variant, seed, place, given.config, digests, cli, given)


def _expected(planned: Planned, runs: Sequence[Run], compared: Sequence[Variant]) -> list[str]:
    """How many parameters it may have, once a run of another method has told; one method may be swept over sizes."""
    reference = planned.variant.reference(compared)
    if reference.method == planned.variant.method:
        return []
    numbers = [run.record["trainable_parameters"] for run in runs if run.variant == reference]
    return [f"--trainer.callbacks.parameters={numbers[0]}"] if numbers else []


def _scales(given: argparse.Namespace) -> set[float]:
    """Of ΔW, for --front."""
    return {1.0, *sweeps_of({"scale": given.scales})[0].values}


def _scaled(planned: Planned, given: argparse.Namespace, rounded: bool) -> bool:
    """Measure a run at every scale of its ΔW, unless that is done; returns whether it is."""
    file = planned.folder / FRONT
    if file.exists() and scales_of(file).keys() == _scales(given):
        return True
    command = ["retain", f"--adapter={planned.last}", f"--scale={given.scales}", "--validate"]
    command += [f"--output_path={file}", f"--limit={given.limit}", *(["--bf16"] if rounded else [])]
    command += ["--corpora", *(f"{name}={text}" for name, text in named_corpora(given.corpora).items())]
    command = command if given.corpora else command[:-1]
    command += [f"--sts={given.sts}"] if given.sts else []
    command += [f"--fit_head={given.fit_head}"] if given.fit_head else []
    return fitting.call(command) == 0
