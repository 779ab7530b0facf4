"""`lit-spectral analyze`: how large adapters' changes are, and how they lie beside their backbone's weights."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from lit_spectral.analysis.by_loss import add_flags, by_loss, check_flags, check_groups
from lit_spectral.analysis.effect_views import Effects, effect_table, write_effect_tables
from lit_spectral.analysis.effects import SWITCHES, Effect, effects
from lit_spectral.analysis.loss_views import loss_tables, write_loss_tables
from lit_spectral.analysis.measuring import Analysis, analyze, place_of
from lit_spectral.analysis.page import title_of, write_page
from lit_spectral.analysis.results import table, write_tables
from lit_spectral.analysis.views import write_overview
from lit_spectral.checkpoint import load_given, log_folder, usable_device
from lit_spectral.datamodules.corpora import check_corpus
from lit_spectral.errors import InputError, Parser, check_at_least, check_at_most
from lit_spectral.files import check_place, write_text
from lit_spectral.flags import add_corpora
from lit_spectral.retention.command import named_corpora
from lit_spectral.retention.retention import Retention
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.flags import add_source
from lit_spectral.updates.sizes import spectral_norms
from lit_spectral.updates.update import Update, check_same_backbone
from lit_spectral.updates.weights import Weights

__all__ = ["measured", "parse", "run"]

log = logging.getLogger(__name__)

# Dimensions of the subspaces that are compared, at most, where --rank is left out.
RANK = 8


def run(args: list[str]) -> Path:
    """Read the sources, measure, print a table, write page, CSV and PNG; returns the page's file.

    Raises:
        InputError: a flag that there isn't; a place that can't be written to; as `measured`.
    """
    given = parse(args)
    folder = Path(given.output_folder or Path("runs") / "analyze" / _name(given.sources))
    page, overview = folder / "index.html", folder / "overview.png"
    for file in (page, overview):
        check_place(file, "analyze: --output_folder")
    device = usable_device(given.device)
    analysis, backbone = measured(given)
    check_groups(given, analysis)
    console = Console()
    console.print(table(analysis))
    title = title_of(analysis, backbone)
    write_tables(analysis, folder)
    write_overview(analysis, title, overview)
    files = ["weights.csv", "values.csv"]
    done: Effects = {}
    labels = dict(zip(analysis.changes, given.sources, strict=True))
    if given.corpora:
        done = {label: _effects(source, given, device) for label, source in labels.items()}
        console.print(effect_table(done))
        files += write_effect_tables(done, folder)
    losses = by_loss(given, labels, device)
    for each in loss_tables(losses):
        console.print(each)
    files += write_loss_tables(losses, folder)
    write_text(page, write_page(analysis, done, losses, title, f"lit-spectral analyze {shlex.join(args)}"))
    tables = ", ".join([str(folder / "changes.csv"), *files])
    console.print(escape(f"tables: {tables}; overview.png"), soft_wrap=True)
    console.print(f"page: [bold]{escape(str(page))}[/bold]", soft_wrap=True)
    return page


def measured(given: argparse.Namespace) -> tuple[Analysis, str]:
    """What flags ask for, and the backbone's name.

    Raises:
        InputError: a source that changes no linear map; sources of different backbones, or another backbone's; a
            --rank above a change's; as `sources.read`, and `analyze`.
    """
    from lit_spectral.updates import sources  # which load what can read them all

    read = {source: sources.read(source, given.backbone) for source in given.sources}
    check_same_backbone(read)
    named = Backbone(given.backbone or next((update.backbone for update in read.values() if update.backbone), ""))
    files, least = named.files(), max(given.top, given.rank or RANK)
    updates = {label: _checked(*each, files, least) for label, each in zip(_labels(read), read.items(), strict=True)}
    check_same_backbone(updates)  # once more, by the paths that their backbone has
    rank = _rank(given.rank, updates)
    changes = {label: update.changes for label, update in updates.items()}
    return analyze(changes, Backbone(named.name, files), rank, given.top, given.seed), Path(named.name).name


def _effects(source: str, given: argparse.Namespace, device: torch.device) -> Mapping[str, Effect]:
    """On every text, of one source."""
    sizes = (given.limit or None, given.max_length, given.batch_size)
    retention = Retention(named_corpora(given.corpora), None, *sizes)
    task = load_given(source, given.backbone).to(device)
    retention.prepare(task)
    log.info("%s: what it does to the model", source)
    return effects(task, retention, given.switch)


def parse(args: list[str]) -> argparse.Namespace:
    """The flags; InputError for one that there isn't, or can't be."""
    parser = Parser(
        prog="lit-spectral analyze",
        description="How large the changes of adapters are, and how they lie beside their backbone's weights: sizes "
        "by layer, energy and similarity with W₀'s singular subspaces, amplification, gains, intruder dimensions, and "
        "W₀'s own spectra. A page, CSV and a PNG; several adapters of one backbone side by side. No data is needed but "
        "for what they do to the model on texts, --corpora: how far predictions and hidden states move, and for what "
        "is measured by losses, on these or on the --tasks of runs.",
        allow_abbrev=False,
    )
    add_source(parser, several=True)
    about = f"of the subspaces that are compared (ΔW's least rank, at most {RANK})"
    parser.add_argument("--rank", type=int, metavar="R", help=about)
    about = "W₀'s leading singular directions in which energy and gains are measured (%(default)s)"
    parser.add_argument("--top", type=int, default=32, metavar="K", help=about)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random subspaces (%(default)s)")
    add_corpora(parser)
    about = "on these: KL(base ‖ adapted) with each layer's, or map's, ΔW switched off, and with it alone"
    parser.add_argument("--switch", choices=SWITCHES, help=about)
    add_flags(parser)
    about = "windows (decoders), lines or rows of each; 0 for all; tasks are validated whole (%(default)s)"
    parser.add_argument("--limit", type=int, default=64, metavar="N", help=about)
    parser.add_argument("--max_length", type=int, default=256, metavar="N", help="tokens of one (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, metavar="N", help="of them at a time (%(default)s)")
    parser.add_argument("--device", metavar="NAME", help="for texts and tasks (the first GPU, or the CPU)")
    parser.add_argument("--output_folder", metavar="FOLDER", help="(runs/analyze/SOURCE)")
    given = parser.parse_args(args)
    twice = next((source for source in given.sources if given.sources.count(source) > 1), None)
    if twice is not None:
        raise InputError(f"analyze: {twice} is given twice; give it once")
    check_at_least(1, rank=given.rank, top=given.top, batch_size=given.batch_size)
    check_at_least(2, max_length=given.max_length)
    check_at_least(0, limit=given.limit)
    check_at_most(2**31 - 1, limit=given.limit, max_length=given.max_length, batch_size=given.batch_size)
    if given.switch and not given.corpora:
        raise InputError("analyze: --switch asks what a text shows; give --corpora too, or leave it out")
    for text in named_corpora(given.corpora).values():
        check_corpus(text)
    check_flags(given)
    if not 0 <= given.seed < 2**30:
        raise InputError(f"analyze: --seed is 0 or more and below 2^30, not {given.seed}")
    return given


def _name(given: list[str]) -> str:
    """Of the folder: the first source's, and of the run that wrote a checkpoint."""
    source = Path(given[0]).absolute()
    run = log_folder(source)
    return f"{run.parent.name}-{run.name}" if run not in {Path(), source.parent} else source.stem


def _labels(read: Mapping[str, Update]) -> list[str]:
    """What each source is called: its method, and its place too where several have one."""
    named = {source: _method(update.origin.get("method")) or source for source, update in read.items()}
    return [f"{label} ({source})" if list(named.values()).count(label) > 1 else label
            for source, label in named.items()]  # fmt: skip


def _method(method: Any) -> str:
    return str(method.get("name", "")) if isinstance(method, Mapping) else str(method or "")


def _checked(source: str, update: Update, files: Weights, least: int) -> Update:
    """The update by paths of the backbone, without heads that have less than the `least` dimensions.

    Raises:
        InputError: it changes nothing, or was trained on another backbone.
    """
    thin = {path: delta.factors for path, delta in update.changes.items() if delta.is_thin and delta.factors}
    if len(thin) == len(update.changes) and not any(spectral_norms(thin).values()):
        raise InputError(f"{source}: it changes no linear map, so that there is no ΔW to look at; give another")
    files.check_digest(update)
    kept = {}
    for path, delta in update.changes.items():
        if place_of(path).layer is None and min(delta.shape) < least and len(update.changes) > 1:
            size = f"{delta.shape[0]} x {delta.shape[1]}"
            log.info("%s: %s is %s, too small for subspaces of %d: left out", source, path, size, least)
            continue
        kept[files.path(path) if path in files else path] = delta
    return replace(update, changes=kept)


def _rank(asked: int | None, updates: Mapping[str, Update]) -> int:
    """As asked for, or what every change has; InputError where one's factors have less than is asked for."""
    least, source, path = min(
        (delta.rank, source, path) for source, update in updates.items() for path, delta in update.changes.items()
    )
    if asked is not None and asked > least:
        raise InputError(f"analyze: --rank {asked} is above the rank of {path} in {source}; give at most {least}")
    return asked if asked is not None else min(RANK, least)
