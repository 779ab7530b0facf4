"""A row of the matrix of scores: one adapter validated on the data of every stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lit_spectral.backbones import fetch
from lit_spectral.comparison.fitting import SCORES
from lit_spectral.errors import InputError
from lit_spectral.files import write_text
from lit_spectral.lightning_cli import Unrun
from lit_spectral.methods import Given
from lit_spectral.sweeps import validated
from lit_spectral.updates import sources
from lit_spectral.updates.model_folder import described
from lit_spectral.updates.update import Update

__all__ = ["Row", "Validation", "measure", "read_row", "write_plan"]

PLAN = "row.json"
# An adapter that is given as it is can't be in shards, and one device says as much as several.
QUIET = ["--trainer.logger=false", "--trainer.enable_model_summary=false", "--trainer.devices=1"]
QUIET += ["--trainer.strategy=auto", "--ckpt_path=null"]


class Validation(NamedTuple):
    """Of one stage's data.

    Args:
        name: the stage's.
        command: flags of `validate`: its config, and what is set besides.
        config: digest of the stage's file.
        head: the checkpoint whose head is to be taken, for tasks with heads of their own; else None.
    """

    name: str
    command: list[str]
    config: str
    head: str | None


class Row(NamedTuple):
    """What is to be measured with one adapter, or with its backbone `alone`."""

    adapter: str
    validations: Sequence[Validation]
    alone: bool = False


def write_plan(row: Row, folder: Path) -> Path:
    """Write down in a folder what `measure` is to do; returns the file."""
    file = folder / PLAN
    write_text(file, json.dumps({**row._asdict(), "validations": [each._asdict() for each in row.validations]}))
    return file


def read_row(row: Row, folder: Path) -> dict[str, dict[str, float]]:
    """All that was logged, by stage, of those stages of a row that are done, as they are to be done now.

    Raises:
        InputError: a damaged file.
    """
    file = folder / SCORES
    if not file.exists():
        return {}
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        asked = {each.name: [*each] for each in row.validations}
        return {name: known[name]["metrics"] for name in asked if name in known and known[name]["of"] == asked[name]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file} is damaged; remove it, and it is measured again") from None


def measure(plan: Path) -> None:
    """Validate what isn't done yet of a row that `write_plan` has written; each stage is kept as it is done.

    Raises:
        InputError: as `lit-spectral validate`.
    """
    given = json.loads(plan.read_text(encoding="utf-8"))
    row = Row(given["adapter"], [Validation(**each) for each in given["validations"]], given["alone"])
    done = read_row(row, plan.parent)
    found: dict[str, Any] = {v.name: {"of": [*v], "metrics": done[v.name]} for v in row.validations if v.name in done}
    for each in row.validations:
        if each.name not in found:
            print(f"on {each.name}:", flush=True)
            found[each.name] = {"of": [*each], "metrics": _metrics(each, row.adapter, row.alone)}
            write_text(plan.with_name(SCORES), json.dumps(found, indent=1))


def _metrics(validation: Validation, adapter: str, alone: bool) -> Mapping[str, float]:
    cli = Unrun(["validate", *validation.command, *QUIET, f"--adapter={adapter}"])
    task: Any = cli.model
    method: Given = task.method
    update = method.read(task.backbone)
    if alone:
        method.put(replace(update, changes={}, whole={}))
    elif validation.head is not None:
        method.put(_with_head(update, sources.read(validation.head, task.backbone), task.backbone))
    try:
        return validated(cli.trainer, task, datamodule=cli.datamodule)
    except InputError as error:
        if alone and "would be random" in str(error):  # nothing to measure, for want of a head
            return {}
        raise


def _with_head(update: Update, own: Update, backbone: str) -> Update:
    """An update with all that another one has outside of the pretrained part: its head, and its names of classes."""
    prefix = f"{described(own, fetch(backbone))[1].base_model_prefix}."
    inside = {name: tensor for name, tensor in update.whole.items() if name.startswith(prefix)}
    head = {name: tensor for name, tensor in own.whole.items() if not name.startswith(prefix)}
    return replace(own, changes=update.changes, whole=inside | head)
