"""Reading checkpoint files: nothing in them is run, and a damaged one is refused."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO
from torch import Tensor

from lit_spectral.errors import InputError
from lit_spectral.files import written
from lit_spectral.tensor_files import content_digest

__all__ = [
    "BENEATH",
    "DIGESTED",
    "WEIGHTS",
    "guard",
    "is_address",
    "read",
    "saved_by_task",
    "tensor_digests",
    "unguard",
]

log = logging.getLogger(__name__)

# The task's own weights: what a checkpoint is loaded for, and those beside averages in its place.
WEIGHTS = ("state_dict", "current_model_state")
# What a method's `on_top_of` has put beneath what it trains.
BENEATH = "beneath"
# Parts whose tensors a task keeps digests of: what is loaded, and what a run goes on with.
DIGESTED = (*WEIGHTS, "optimizer_states", BENEATH)
# What Lightning reads of a checkpoint, and what a task has put into it.
LIGHTNING = {"state_dict": dict, "epoch": int, "global_step": int, "pytorch-lightning_version": str, "loops": dict}
OPTIONAL = {"callbacks": dict, "optimizer_states": list, "lr_schedulers": list, "current_model_state": dict}
OPTIONAL |= {BENEATH: dict}
OURS = {"task": str, "init": dict, "method": dict, "backbone_digest": str, "seed": int, "skipped_steps": int}
OURS |= {"method_state": dict, "settings": dict, "digests": dict}
REMEDY = "give a .ckpt that fit wrote"


def read(path: str | os.PathLike[str], weights_only: bool | None = None, summary: bool = False) -> dict[str, Any]:
    """What a checkpoint of this package holds, its tensors on the CPU.

    Its bytes and tensors are compared with their checksums, and its weights are finite.

    Args:
        path: of a local file; what an address points to could change between two looks.
        weights_only: as the trainer's `fit` is given it; false is refused.
        summary: leave tensors in the file, and compare no checksum of them: for a look at the rest.

    Raises:
        InputError: no such file, not one that `fit` wrote, a damaged one, code in it, or an address.
    """
    where = f"checkpoint: {os.fspath(path)}"
    if weights_only is False:
        raise InputError(f"{where} would run what code it holds with weights_only false; leave that out")
    if is_address(path):
        raise InputError(f"{where} is an address; download the file, and give its path")
    if not os.path.exists(path):
        raise InputError(f"checkpoint: there is no file {os.fspath(path)}; {REMEDY}")
    if os.path.isdir(path):
        raise InputError(f"{where} is a folder; {REMEDY}")
    if not os.path.getsize(path):
        raise InputError(f"{where} is empty; {REMEDY}")
    content: Any = None
    try:
        broken = None if summary else _broken_record(path)
        if broken is None:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=summary)
    except Exception as error:  # bytes that are none of a checkpoint can make a reader do anything
        raise InputError(f"{where} {_reason(path, error)}") from error
    if broken is not None:
        raise InputError(f"{where} is damaged (in {broken}); {REMEDY}, or a copy of this one that is whole")
    try:
        _check_form(content)
        if not summary:
            _check_tensors(content)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if not summary and (content.get("hyper_parameters") or content.get("datamodule_hyper_parameters")):
        log.warning("%s holds hyper_parameters, which are passed over; the settings that are given act", where)
    return dict(content)


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one of another file system than this machine's: `https://…`, `s3://…`, `hf://…`."""
    return not os.path.exists(path) and re.match(r"[A-Za-z][\w+.-]*(://|::)", os.fspath(path)) is not None


def saved_by_task(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a task has put into a checkpoint beside weights.

    Raises:
        InputError: it was not written by this package, or by an earlier version.
    """
    saved = checkpoint.get("lit_spectral")
    if not isinstance(saved, dict):
        raise InputError(f"this checkpoint was not written by lit-spectral; it names no method or backbone; {REMEDY}")
    missing = [key for key in OURS if key not in saved]
    if missing:
        raise InputError(
            f"this checkpoint was written by an earlier version of lit-spectral, without {', '.join(missing)}; "
            "use the version that wrote it, or train anew"
        )
    return saved


def tensor_digests(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """A hash of each part that has weights or an optimizer's state: of all tensors in it, and where they are."""
    return {part: _digest(checkpoint[part]) for part in DIGESTED if checkpoint.get(part)}


class _CheckpointFiles(CheckpointIO):
    """Loads by `read`, whatever the trainer is told, and writes files that appear whole or not at all."""

    def __init__(self, inner: CheckpointIO) -> None:
        self.inner = inner

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """As `read`; tensors are moved to where they belong by what they are loaded into."""
        return read(path, weights_only)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Beside its place, flushed, renamed: Lightning's own writes where TMPDIR is, and copies from another disk.

        A trainer's plugin, and what is not on this machine, are left to the trainer.
        """
        if type(self.inner) is not TorchCheckpointIO or "://" in str(path):
            self.inner.save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with written(Path(path)) as scratch:
            torch.save(checkpoint, scratch)

    def remove_checkpoint(self, path: Any) -> None:
        """The trainer's own."""
        self.inner.remove_checkpoint(path)

    def teardown(self) -> None:
        """The trainer's own."""
        self.inner.teardown()


def guard(trainer: pl.Trainer) -> None:
    """Have a trainer read and write checkpoint files as here; those that a strategy has in shards are its own."""
    if not isinstance(trainer.strategy.checkpoint_io, _CheckpointFiles):
        trainer.strategy.checkpoint_io = _CheckpointFiles(trainer.strategy.checkpoint_io)


def unguard(trainer: pl.Trainer) -> None:
    """Have a trainer read them as before; its next run may be of another module."""
    if isinstance(trainer.strategy.checkpoint_io, _CheckpointFiles):
        trainer.strategy.checkpoint_io = trainer.strategy.checkpoint_io.inner


def _broken_record(path: str | os.PathLike[str]) -> str | None:
    """The first record of a file that differs from its checksum, which torch writes and does not look at."""
    with zipfile.ZipFile(path) as archive:
        # torch.serialization.set_crc32_options(False) leaves all of them out.
        return archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    """Why a file could not be read, and what to do."""
    try:
        code = torch.serialization.get_unsafe_globals_in_checkpoint(path)  # it runs nothing
    except Exception:
        code = []
    if code:
        return (
            f"holds {', '.join(sorted(code))}, which may be code and is not run; {REMEDY}, "
            "or allow a class that you trust by torch.serialization.add_safe_globals"
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not zipfile.is_zipfile(path):  # torch speaks of another format of its own
        reason = "it is none, or its end is lost"
    return f"can't be read as a checkpoint ({reason}); {REMEDY}"


def _check_form(content: Any) -> None:
    if not isinstance(content, dict) or "lit_spectral" not in content:
        raise InputError(f"it was not written by lit-spectral; {REMEDY}")
    saved = saved_by_task(content)
    missing = [key for key in LIGHTNING if key not in content]
    if missing:
        raise InputError(f"it lacks {', '.join(missing)}; {REMEDY}")
    odd = [
        key
        for part, form in ((content, LIGHTNING | OPTIONAL), (saved, OURS))
        for key, kind in form.items()
        if key in part and not isinstance(part[key], kind)
    ]
    if not odd:
        weights = {name: value for part in WEIGHTS for name, value in content.get(part, {}).items()}
        odd = [str(name) for name, value in weights.items() if not (isinstance(name, str) and type(value) is Tensor)]
    if odd:
        raise InputError(f"{odd[0]} is not what fit writes there; {REMEDY}")


def _check_tensors(content: dict[str, Any]) -> None:
    digests = tensor_digests(content)
    damaged = [part for part, digest in digests.items() if digest != content["lit_spectral"]["digests"].get(part)]
    if damaged:
        raise InputError(f"its {damaged[0]} is damaged: the checksum of its tensors differs; {REMEDY}")
    for part in WEIGHTS:
        for name, tensor in content.get(part, {}).items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"the checkpoint's weights are not finite: {name}; give one from before that")


def _digest(content: Any) -> str:
    parts: list[str | Tensor] = []
    for name, tensor in _tensors(content):
        parts += [name, tensor]
    return content_digest(*parts)


def _tensors(content: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested mappings and lists, and their paths; not of classes whose bytes lie elsewhere."""
    if isinstance(content, Tensor):
        if type(content) in {Tensor, torch.nn.Parameter} and content.layout is torch.strided:
            yield path, content
    elif isinstance(content, (Mapping, list, tuple)):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            yield from _tensors(value, f"{path}/{key}")
