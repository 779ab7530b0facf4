"""A checkpoint of ours out of an update of low rank, whoever trained it: LoRA of one rank and scale 1."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import torch
from torch import Tensor

from lit_spectral.adapters import packed
from lit_spectral.backbone_digest import backbone_digest
from lit_spectral.backbones import DTYPES, fetch
from lit_spectral.checkpoint_file import tensor_digests
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA
from lit_spectral.tasks import SequenceClassification, Task
from lit_spectral.tasks.of_model import task_of_model
from lit_spectral.tasks.saved_weights import always_trained
from lit_spectral.updates.delta import Delta, Pair
from lit_spectral.updates.peft_folder import thin_pairs
from lit_spectral.updates.update import Update
from lit_spectral.updates.weights import Weights

__all__ = ["write_checkpoint"]

LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")


def write_checkpoint(update: Update, file: Path, weights: Weights, errors: Mapping[str, float]) -> None:
    """Write a `.ckpt` that `lit_spectral.checkpoint.load` makes a task of, without an optimizer's state.

    All maps have the rank of the largest change, the others by zeros. What was trained whole is in it where the task
    trains it whatever the method: its head, and what the backbone's files lack.

    Args:
        update: as it is to be, which fits the backbone.
        file: a new one.
        weights: the backbone's.
        errors: what was cut off of changes, by path, which is noted.

    Raises:
        InputError: changes that are no thin factors or lie outside of the encoder, whole tensors that LoRA leaves
            alone, or an architecture of no task here.
    """
    model = weights.skeleton
    pairs = _pairs(update, weights)
    rank = max(len(pair.right) for pair in pairs.values())
    for path, pair in pairs.items():
        if rank > (most := min(Delta(pair).shape)):
            raise InputError(
                f"export: the largest rank is {rank}, and {path} can have no more than {most}, where a checkpoint has "
                "one rank; give --rank"
            )
    within = "" if model.base_model is model else f"{model.base_model_prefix}."
    outside = next((path for path in pairs if not path.startswith(within)), None)
    if outside is not None:
        raise InputError(f"export: {outside} is no part of the encoder, which tasks adapt; give --to peft or merged")
    # A list would name endings of paths, of which there may be more.
    targets = "|".join(re.escape(path.removeprefix(within)) for path in pairs)
    task = _task(update, weights, LoRA(target_modules=targets, rank=rank))
    state = _whole(update, weights, task)
    for path, pair in pairs.items():
        state[f"{path}.left"], state[f"{path}.right"] = pair.padded(rank)
    named = {f"model.{name}": tensor.float().contiguous() for name, tensor in state.items()}
    # What the task says itself is not noted twice.
    origin = {key: value for key, value in update.origin.items() if key not in {"architecture", "config_labels"}}
    origin |= {"left_out": dict(errors)} if errors else {}
    steps = origin.get("steps")
    noted = {"origin": json.loads(json.dumps(origin, default=str)), "settings": {}, "method_state": {}}
    content: dict[str, Any] = {
        "state_dict": packed(named),
        "epoch": 0,
        "global_step": steps if isinstance(steps, int) else 0,
        "pytorch-lightning_version": lightning.__version__,
        "loops": _loops(),
    }
    content["lit_spectral"] = {**task._identity(), **noted, "seed": 0, "skipped_steps": 0}
    content["lit_spectral"]["digests"] = tensor_digests(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    file.write_bytes(buffer.getbuffer())  # whose errors are the system's own


def _pairs(update: Update, weights: Weights) -> dict[str, Pair]:
    """Factors by path in the full model, in its order; of more of them than the map has a rank, as many as that."""
    found = {weights.path(path): pair for path, pair in thin_pairs(update).items()}
    pairs = {}
    for path in (path for path in weights.maps if path in found):
        pair: Pair | None = found[path]
        if len(found[path].right) > min(Delta(found[path]).shape):
            pair = Delta(found[path]).truncated().delta.factors
        assert pair is not None
        pairs[path] = pair
    return pairs


def _task(update: Update, weights: Weights, method: LoRA) -> Task:
    """The task that the architecture is one of, without its model, with the backbone's digest."""
    model: Any = weights.skeleton
    name = type(model).__name__
    kind = task_of_model(name)
    if kind is None:
        raise InputError(f"export: there is no task for {name}; give --to peft or merged")
    dtype = update.origin.get("dtype")
    given: dict[str, Any] = {"dtype": dtype if dtype in DTYPES else "auto"}
    if kind is SequenceClassification:
        labels = [str(label) for _, label in sorted(weights.config.id2label.items())]
        unnamed = labels == [f"LABEL_{number}" for number in range(len(labels))]
        given |= {"num_labels": len(labels), "label_names": None if unnamed else labels}
    task = kind(update.backbone, method, **given)
    reads = task.loading
    task.loading = replace(reads, weights=False)
    made = type(task.load_model(fetch(task.backbone))[0]).__name__
    if made != name:
        raise InputError(
            f"export: {kind.__name__} makes a {made} of this backbone, no {name}; give --to peft or merged"
        )
    task.loading = reads
    task.backbone_digest = update.digest or weights.digest()
    if not task.backbone_digest:
        loaded, missing = task.load_model(fetch(task.backbone))
        task.backbone_digest = backbone_digest(
            loaded.base_model,  # type: ignore[arg-type]
            always_trained(loaded, missing, task.trains_head),
        )
    return task


def _whole(update: Update, weights: Weights, task: Task) -> dict[str, Tensor]:
    """What the task trains beside adapters, in the model's order, from the update or else from the files."""
    names = {id(parameter): name for name, parameter in weights.skeleton.named_parameters()}
    missing = {name for name in names.values() if not any(map(weights.lies, weights.tied(name)))}
    trained = always_trained(weights.skeleton, missing, task.trains_head)
    wanted = [name for key, name in names.items() if key in trained]
    given = {weights.tied(name)[0]: tensor for name, tensor in update.whole.items()}
    others = sorted(given.keys() - set(wanted))
    if others:
        raise InputError(
            f"export: {others[0]} was trained whole, which LoRA of a {type(task).__name__} leaves as it is; give --to "
            "merged"
        )
    found = {}
    for name in wanted:
        value = given.get(name)
        if value is None:
            value = weights.tensor(name)
        if value is None or value.shape != weights.shapes[name]:
            raise InputError(
                f"export: neither the adapter nor the backbone has {name}, which is new in a {type(task).__name__}; "
                "give an adapter that brings its head"
            )
        found[name] = value
    return found


def _loops() -> dict[str, Any]:
    """Of a run that has not begun, as Lightning wants to read them before it validates or tests."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)  # which devices there are
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    try:
        with warnings.catch_warnings(action="ignore"):
            trainer: Any = pl.Trainer(accelerator="cpu", devices=1, **quiet)
    finally:
        log.setLevel(level)
    return {name: getattr(trainer, name).state_dict() for name in LOOPS}
