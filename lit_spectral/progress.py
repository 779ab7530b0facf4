"""Where a run is: what a checkpoint says of it is always the state after an optimizer step, whenever it is written."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

__all__ = ["Progress", "begin_next_epoch", "begin_validation", "seed_step", "step_seed"]

COUNTS = ("ready", "started", "processed", "completed")
BATCHES, STEPPED = "epoch_loop.batch_progress", "epoch_loop.state_dict"


def step_seed(seed: int, step: int, what: int | str) -> int:
    """The seed of what is drawn in an optimizer step, which depends on these alone: a run can go on from any step."""
    digest = hashlib.blake2b(f"{seed}/{step}/{what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def seed_step(seed: int, step: int, process: int) -> None:
    """Let torch's random numbers of an optimizer step depend on these alone."""
    torch.manual_seed(step_seed(seed, step, process))


class Progress:
    """Remembers the last optimizer step of a fit, for checkpoints that are written between two.

    Such a one would count batches whose gradients are lost: an interrupted run saves in the middle of a batch, or
    of the batches that a step is accumulated over.
    """

    def __init__(self) -> None:
        self._batches = 0  # of the epoch, that the last step has behind it
        self._epoch_end: dict[str, Any] | None = None  # of the trainer's fit loop, as the last epoch ended

    def stepped(self, trainer: pl.Trainer) -> None:
        """An optimizer step was taken."""
        self._batches = trainer.fit_loop.batch_idx + 1

    def epoch_ended(self, trainer: pl.Trainer) -> None:
        """All batches of an epoch are done."""
        self._batches = 0
        self._epoch_end = copy.deepcopy(trainer.fit_loop.state_dict())

    def settle(self, trainer: pl.Trainer, loops: dict[str, Any]) -> None:
        """Set what a checkpoint says of the trainer's loops to the last step.

        Args:
            trainer: that writes it.
            loops: as Lightning has put them into it; changed in place.
        """
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        fits = trainer.state.fn == TrainerFn.FITTING and (trainer.training or trainer.validating)
        if not fits or progress.current.ready == progress.current.processed == self._batches:
            return
        if self._batches:
            _rewind(loops["fit_loop"], self._batches)
        elif self._epoch_end is not None and not progress.is_last_batch:
            loops["fit_loop"] = copy.deepcopy(self._epoch_end)


def begin_validation(fit_loop: dict[str, Any]) -> None:
    """Have a run go on with a validation that was broken off, from its first batch.

    Args:
        fit_loop: of a checkpoint; changed in place.
    """
    progress = fit_loop["epoch_loop.val_loop.batch_progress"]
    for name in COUNTS:  # Lightning looks for one batch that has begun
        begun = int(name in {"ready", "started"})
        progress["total"][name] += begun - progress["current"][name]
        progress["current"][name] = begun
    progress["is_last_batch"] = False


def begin_next_epoch(fit_loop: dict[str, Any]) -> None:
    """Have a run of so many steps go on from an epoch's end as one of so many epochs does: with the next epoch.

    Lightning would count an empty one first, unless a batch has just ended.

    Args:
        fit_loop: of a checkpoint; changed in place.
    """
    epochs, batches = fit_loop["epoch_progress"], fit_loop[BATCHES]
    if epochs["current"]["ready"] == epochs["current"]["processed"] == epochs["current"]["completed"] + 1:
        for part in ("current", "total"):
            epochs[part]["processed"] -= 1
            batches[part]["completed"] -= 1
        fit_loop[STEPPED]["_batches_that_stepped"] -= 1


def _rewind(fit_loop: dict[str, Any], batches: int) -> None:
    """Say that so many batches of the epoch are done, in the form that Lightning has when one of them has just ended.

    In that form `completed` is one behind, and so is the number of steps that loggers go by: resuming adds one.
    """
    progress = fit_loop[BATCHES]
    for name in COUNTS:
        count = batches - (name == "completed")
        progress["total"][name] -= progress["current"][name] - count
        progress["current"][name] = count
    progress["is_last_batch"] = False
    fit_loop[STEPPED]["_batches_that_stepped"] -= 1
