"""`lit-spectral compare`: one config, several methods, several seeds."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console

from lit_spectral.comparison.page import write_page
from lit_spectral.comparison.results import Comparison, Run, write_csv
from lit_spectral.comparison.variants import Variant, pairs_of, variants
from lit_spectral.errors import InputError, Parser
from lit_spectral.retention import Retention
from lit_spectral.retention.command import named_corpora

__all__ = ["run"]

RECORD, COMMAND = "record.json", "command.json"


class Setting(NamedTuple):
    """What a config says of how its runs are measured."""

    metric: str
    higher_is_better: bool
    seeded_data: bool


def run(args: list[str], build: Callable[[list[str]], Any]) -> Path:
    """Run what has not been run yet, then print the table and write CSV and page; returns the page's file.

    Args:
        args: of `lit-spectral compare`; what isn't its own are flags of `fit`.
        build: from flags of `fit` to a LightningCLI that has run nothing.

    Raises:
        InputError: flags that can't be used; a folder with runs of other settings; no run that came to its end.
    """
    given, rest = _parse(args)
    console = Console()
    compared = variants(given.methods, pairs_of(rest))
    configs = [f"--config={file}" for file in given.config]
    setting = _check(build, configs, compared, given)
    folder = Path(given.output_folder or Path("runs") / "compare" / Path(given.config[-1]).stem)
    places = [(variant, seed) for seed in given.seeds for variant in compared]
    runs, failed = [], []
    for number, (variant, seed) in enumerate(places, 1):
        place = folder / _slug(variant.name) / f"seed_{seed}"
        title = f"{number} of {len(places)}: {variant.name}, seed {seed}"
        command = ["fit", *configs, *variant.flags(), *_places(place, seed, setting)]
        command += _retention(given)
        if _is_done(place, command, given.config):
            console.print(f"[dim]{title}: done before[/dim]")
        else:
            console.rule(title)
            limits = [] if given.unmatched else _limits(folder, variant.reference(compared), given.seeds)
            if _fit(command + _recording(place, limits), place):
                failed.append(title)
                continue
        runs.append(Run(variant, seed, json.loads((place / RECORD).read_text()), place, command))
    if not runs:
        raise InputError("compare: no run came to its end; what went wrong stands above")
    comparison = Comparison(compared, runs, setting.metric, setting.higher_is_better)
    console.rule("What was learned, and what was forgotten")
    console.print(comparison.table())
    for title in failed:
        console.print(f"[red]failed: {title}[/red]; the same command tries it again")
    write_csv(comparison, folder)
    page = folder / "index.html"
    page.write_text(write_page(comparison, f"{Path(given.config[-1]).stem}", _again(args)), encoding="utf-8")
    console.print(f"table: {folder / 'table.csv'}, each run: {folder / 'runs.csv'}")
    console.print(f"page: [bold]{page}[/bold]", soft_wrap=True)
    if failed:
        sys.exit(1)
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
    parser.add_argument("--methods", nargs="+", default=["LoRA", "FCLoRA"], metavar="NAME",
                        help="the first is what the others are compared with (%(default)s)")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="(%(default)s)")
    parser.add_argument("--corpora", nargs="+", default=[], metavar="[NAME=]TEXT",
                        help="texts on which to measure what is forgotten, as in retain")  # fmt: skip
    parser.add_argument("--sts", metavar="FOLDER", help="sentence pairs in STS-B's form, for encoders")
    parser.add_argument("--fit_head", metavar="TEXT", help="to fit a masked-language head on, as in retain")
    parser.add_argument("--limit", type=int, default=256, help="windows or lines of each text; 0 for all (%(default)s)")
    parser.add_argument("--metric", metavar="NAME", help="the task's (val/…; what the config's best checkpoint is by)")
    parser.add_argument("--unmatched", action="store_true", help="compare whatever their numbers of parameters")
    parser.add_argument("--output_folder", metavar="FOLDER", help="(runs/compare/CONFIG)")
    return parser.parse_known_args(args)


def _check(build: Callable[[list[str]], Any], configs: list[str], compared: list[Variant], given: Any) -> Setting:
    """Have every variant's flags read before anything runs, and see how the config measures."""
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.WARNING)  # each run tells of its own devices
    for variant in compared:
        cli = build([*configs, *variant.flags()])
    lightning.setLevel(level)
    if given.corpora or given.sts:
        Retention(given.corpora, given.sts, given.limit or None)
    best = [c for c in cli.trainer.callbacks if isinstance(c, ModelCheckpoint) and c.monitor is not None]
    metric = given.metric or (best[0].monitor if best else "val/loss")
    known = [c.mode == "max" for c in best if c.monitor == metric]
    higher = known[0] if known else not metric.endswith(("loss", "perplexity"))
    return Setting(metric, higher, hasattr(cli.datamodule, "seed"))


def _places(place: Path, seed: int, setting: Setting) -> list[str]:
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(place.parent.parent), "name": place.parent.name, "version": place.name},
    }
    seeds = [f"--seed_everything={seed}", *([f"--data.seed={seed}"] if setting.seeded_data else [])]
    return [*seeds, f"--trainer.logger={json.dumps(logger)}"]


def _retention(given: Any) -> list[str]:
    if not given.corpora and not given.sts:
        return []
    flags = {"limit": given.limit or "null", "sts": given.sts, "fit_head": given.fit_head}
    flags["corpora"] = json.dumps(named_corpora(given.corpora)) if given.corpora else None
    monitor = "--trainer.callbacks+=lit_spectral.callbacks.RetentionMonitor"
    return [monitor, *(f"--trainer.callbacks.{name}={value}" for name, value in flags.items() if value)]


def _recording(place: Path, limits: list[str]) -> list[str]:
    return [
        "--trainer.callbacks+=lit_spectral.callbacks.RunRecord",
        f"--trainer.callbacks.file={place / RECORD}",
        *limits,
    ]


def _limits(folder: Path, reference: Variant, seeds: Sequence[int]) -> list[str]:
    """How many parameters are expected, once a run of the reference has told."""
    for seed in seeds:
        record = folder / _slug(reference.name) / f"seed_{seed}" / RECORD
        if record.exists():
            return [f"--trainer.callbacks.parameters={json.loads(record.read_text())['trainable_parameters']}"]
    return []


def _is_done(place: Path, command: list[str], configs: Sequence[str]) -> bool:
    """Whether this run came to its end; writes down what it is, or refuses a folder where another was run."""
    what = {"command": command, "configs": [hashlib.sha256(Path(c).read_bytes()).hexdigest() for c in configs]}
    file = place / COMMAND
    if file.exists():
        if json.loads(file.read_text()) != what:
            raise InputError(
                f"compare: {place} has a run of other settings; give another --output_folder, or remove it"
            )
    else:
        place.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(what, indent=1), encoding="utf-8")
    return (place / RECORD).exists()


def _fit(command: list[str], place: Path) -> int:
    """Run it in a process of its own, from its last checkpoint if it has one; returns the exit status."""
    last, program = place / "checkpoints" / "last.ckpt", [sys.executable, "-m", "lit_spectral"]
    if last.exists():
        status = subprocess.run([*program, *command, f"--ckpt_path={last}"], check=False).returncode
        # Stopped between its last checkpoint and its record, it has nothing left to do, and is done again.
        if status or (place / RECORD).exists():
            return status
    return subprocess.run([*program, *command], check=False).returncode


def _slug(name: str) -> str:
    return re.sub(r"[^\w=.,+-]+", "_", name)


def _again(args: Sequence[str]) -> str:
    return f"lit-spectral compare {shlex.join(args)}"
