"""Taking an update away: to a folder that peft and its like load, a merged model, or a checkpoint of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from lit_spectral.errors import InputError, nearest, reason_of
from lit_spectral.files import written
from lit_spectral.updates.card import write_card
from lit_spectral.updates.delta import Delta
from lit_spectral.updates.merged import write_merged
from lit_spectral.updates.peft_folder import write_peft
from lit_spectral.updates.update import Update
from lit_spectral.updates.weights import Weights

__all__ = ["FORMS", "check_empty", "write"]

FORMS = ("peft", "merged", "checkpoint")


def write(
    update: Update,
    place: Path,
    to: str,
    rank: int | None = None,
    energy: float | None = None,
    consumer: str | None = None,
) -> dict[str, float]:
    """Write a folder with a model card, or a file, whole or not at all.

    Args:
        update: its origin's `architecture` and `config_labels` say which model it is of, where it isn't the
            backbone's own.
        place: a folder, new or empty; of a checkpoint a new file.
        to: `peft`, LoRA factors with the scale inside; `merged`, a Hugging Face model with W₀ + ΔW; or `checkpoint`, a
            `.ckpt` as of a task with LoRA.
        rank: the largest of a change, at least 1; None for no bound.
        energy: the share of Σσ² that every change keeps, in (0, 1].
        consumer: `vllm` or `llama.cpp`, which take less than peft does.

    Returns:
        By path ‖what was cut off‖_F / ‖ΔW‖_F; nothing of changes that are exact.

    Raises:
        InputError: a place with something in it or that can't be written, an update that is not the backbone's,
            or one that `to` or `consumer` doesn't take.
    """
    if to not in FORMS:
        raise InputError(f"--to: there is no {to}{nearest(to, FORMS)}")
    if consumer is not None and to != "peft":
        raise InputError(f"--for {consumer} says who loads the factors; give --to peft, or leave it out")
    check_empty(place, to)
    update.check_finite("export")
    if not update.backbone:
        raise InputError("the adapter doesn't say what its backbone is; give --backbone FOLDER")
    weights = _weights(update)
    weights.check_fits(update)
    kept, errors = _truncated(update, weights, rank, energy)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with written(place) as scratch:
            if to == "checkpoint":
                from lit_spectral.updates.lora_checkpoint import write_checkpoint  # which brings Lightning

                write_checkpoint(kept, scratch, weights, errors)
            else:
                scratch.mkdir()
                if to == "peft":
                    write_peft(kept, scratch, weights, consumer)
                else:
                    write_merged(kept, scratch, weights)
                write_card(kept, scratch, to, errors)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise InputError(f"export: {place} can't be written ({reason}); make room, or give another place") from error
    return errors


def check_empty(place: Path, to: str) -> None:
    """InputError if there is a file, or a folder with something in it; of a checkpoint, which is a file, any folder."""
    if to == "checkpoint":
        if place.is_dir():
            raise InputError(f"--output: {place} is a folder, and a checkpoint is a file; give --output FILE.ckpt")
        if place.exists() or place.is_symlink():
            raise InputError(f"--output: {place} is there already; give a new file")
        return
    if place.is_dir() and not any(place.iterdir()):
        return
    if place.exists() or place.is_symlink():
        raise InputError(f"--output: {place} is there and not empty; give a new folder")


def _weights(update: Update) -> Weights:
    """The backbone's as the update's model has them, with as many classes as its head."""
    architecture = str(update.origin.get("architecture") or "")
    seen = Weights(update.backbone, architecture, update.labels)
    count = update.class_count(seen.shapes, seen.config.num_labels)
    if count == seen.config.num_labels:
        return seen
    return Weights(update.backbone, architecture, {number: f"LABEL_{number}" for number in range(count)})


def _truncated(
    update: Update, weights: Weights, rank: int | None, energy: float | None
) -> tuple[Update, dict[str, float]]:
    """Every change in as few factors as asked for, and what that cost by path."""
    if rank is None and energy is None:
        return update, {}
    errors: dict[str, float] = {}

    def cut(path: str, delta: Delta) -> Delta:
        if delta.is_thin and energy is None and rank is not None and delta.rank <= rank:
            return delta
        found, error = delta.truncated(rank, energy, weights[path] if delta.hadamard is not None else None)
        if error > 0:
            errors[path] = error
        return found

    changes = {path: cut(path, delta) for path, delta in update.changes.items()}
    return replace(update, changes=changes), errors
