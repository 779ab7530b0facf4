"""Whether a run means anything: what is trained at all, what is watched, and what an evaluation measures."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    Timer,
)
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_spectral.adapters import named_changes, trained_state
from lit_spectral.adapters.foreign import PeftChange
from lit_spectral.errors import InputError, check_at_least
from lit_spectral.run_folder import verb_of

__all__ = ["MeaningCheck", "check_limits", "check_rates", "never_trained", "note_loading"]

log = logging.getLogger(__name__)

# The least that settings of a trainer may be, where Lightning takes less without a word.
_LEAST = {
    "gradient_clip_val": 0,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "min_epochs": 0,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": 0,
    "val_check_interval": 1e-9,
}


class MeaningCheck(Callback):
    """Refuses a fit that is to train on nothing or watches what isn't logged, and the evaluation of random weights.

    What can't be known before is said at the end: that a fit made no step.
    """

    def __init__(self) -> None:
        self._steps_before: int | None = None

    def before(self, trainer: pl.Trainer) -> None:
        """InputError for limits that leave nothing to do; needs neither data nor model."""
        self._steps_before = None
        check_limits(trainer, verb_of(trainer))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check what is watched."""
        check_monitors(trainer, pl_module, pl_module.logged_metrics())

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin to count steps."""
        self._steps_before = trainer.global_step - pl_module.skipped_steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A step that wasn't skipped has trained the model."""
        if trainer.global_step - pl_module.skipped_steps != self._steps_before:
            pl_module.is_trained = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Before a checkpoint is written as if of a trained model: InputError if every step so far was skipped."""
        made = trainer.global_step - pl_module.skipped_steps
        if self._steps_before == made and pl_module.skipped_steps and trainer.scaler is None:
            raise InputError(
                f"fit: all {pl_module.skipped_steps} steps were skipped, since no gradient was finite; give a smaller "
                "learning rate, or undamaged weights and data"
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say it if no step was made: of a run that goes on from its end, or one whose every step was skipped."""
        if trainer.is_global_zero and self._steps_before in {None, trainer.global_step - pl_module.skipped_steps}:
            log.warning("fit: nothing was trained: the run was at its end before, or every step was skipped")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Refuse to measure what is random."""
        _check_start(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Refuse to measure what is random."""
        _check_start(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Refuse to predict by what is random."""
        _check_start(trainer, pl_module)


def check_limits(trainer: pl.Trainer, verb: str) -> None:
    """InputError for limits that leave nothing to `fit`, `validate`, `test` or `predict`."""
    for name, least in _LEAST.items():
        value = getattr(trainer, name, None)
        if value != math.inf:  # Lightning's word for all
            check_at_least(least, **{f"trainer.{name}": value})
    part = {"fit": "train", "validate": "val"}.get(verb, verb)
    for name in ("epochs", "steps"):
        least, most = (getattr(trainer, f"{bound}_{name}") for bound in ("min", "max"))
        if least is not None and most is not None and -1 < most < least:
            raise InputError(f"trainer.min_{name}: {least} is above max_{name} {most}; give less")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (callback.time_remaining() or 1) <= 0:
            raise InputError("trainer.max_time leaves no time; give more, as DD:HH:MM:SS")
        if isinstance(callback, BaseFinetuning):
            raise InputError(
                f"trainer.callbacks: {type(callback).__name__} would train the backbone, which adapters leave alone; "
                "leave it out, or give --model.method=FullFineTuning"
            )
    for name in (f"limit_{part}_batches", *(("max_steps", "max_epochs") if verb == "fit" else ())):
        if getattr(trainer, name) == 0:
            raise InputError(f"trainer.{name}: 0 leaves nothing to {verb}; give more")


def check_rates(optimizer: Optimizer, scheduler: Any, steps: int) -> None:
    """InputError where no learning rate is ever above 0, or one isn't finite.

    Args:
        optimizer: as the user's settings make it.
        scheduler: over it; asked where its factors are functions of the step.
        steps: of the run.
    """
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if not all(map(math.isfinite, rates)) or max(rates) <= 0:
        raise InputError(f"model.optimizer: a learning rate of {max(rates)} trains nothing; give --model.optimizer.lr")
    if isinstance(scheduler, LambdaLR):
        factors = (factor(step) for step in range(steps) for factor in scheduler.lr_lambdas)
        if not any(factor > 0 for factor in factors):
            raise InputError(
                f"model.warmup_steps: the learning rate is 0 in all of the run's {steps} steps; give fewer steps of "
                "warm-up, or more of the run"
            )


def check_monitors(trainer: pl.Trainer, task: pl.LightningModule, logged: Iterable[str]) -> None:
    """Refuse what watches a metric that isn't logged; where others may log more, say it.

    Args:
        trainer: whose callbacks watch.
        task: that is fitted.
        logged: metrics that it logs.

    Raises:
        InputError: no such metric, and every callback and the task are known ones.
    """
    known = set(logged)
    unvalidated = {name for name in known if name.startswith("val")} if not trainer.enable_validation else set()
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    ours = all(type(party).__module__.split(".")[0] in {"lightning", "lit_spectral"} for party in [*callbacks, task])
    rates = any(isinstance(callback, LearningRateMonitor) for callback in callbacks)
    for callback in callbacks:
        monitor: str | None = getattr(callback, "monitor", None)
        watched = {monitor} if monitor else set()
        if isinstance(callback, ModelCheckpoint):
            watched = (watched | set(re.findall(r"\{(.*?)[:}]", callback.filename or ""))) - {"epoch", "step"}
        for name in sorted(watched - known | watched & unvalidated):
            if rates and name.startswith("lr-"):
                continue
            message = f"{type(callback).__name__}: {name} is not logged"
            message += " without validation" if name in known else f"; there are {', '.join(sorted(known))}"
            if ours and name not in known:
                raise InputError(message)
            if trainer.is_global_zero:
                log.warning("%s, unless it is by a callback of yours", message)


def note_loading(task: Any, incompatible: Any) -> None:
    """After `load_state_dict`: a task that has got everything a checkpoint holds counts as trained."""
    if task.model is not None:
        needed = {f"model.{name}" for name in trained_state(task.model)}
        task.is_trained = task.is_trained or not needed & set(incompatible.missing_keys)


def _check_start(trainer: pl.Trainer, task: Any) -> None:
    if trainer.state.fn == TrainerFn.FITTING or getattr(task, "is_trained", True):  # or another's module
        return
    verb, random = verb_of(trainer), never_trained(task.model, task.new_weights)
    if random:
        more = f" and {len(random) - 1} more weights" if len(random) > 1 else ""
        raise InputError(
            f"{verb}: {random[0]}{more} start at random and were neither trained nor loaded; "
            "give --ckpt_path FILE of a fit, or fit first"
        )
    if trainer.is_global_zero:
        log.warning("%s: no checkpoint is given, so this is of the backbone as it came (ΔW = 0)", verb)


@torch.no_grad()
def never_trained(model: nn.Module, new: list[str]) -> list[str]:
    """Names of what in a model that was neither trained nor loaded makes its outputs random.

    Args:
        model: adapted, as it starts.
        new: names of weights that the backbone's files lacked.
    """
    prompts = [name for name, _ in model.named_parameters() if name.startswith("prompt_encoder.")]
    # Our own changes start at 0; a layer of peft need not.
    changes = {name: change for name, change in named_changes(model).items() if isinstance(change, PeftChange)}
    moved = [n for n, c in changes.items() if c.times(torch.ones(c.in_features, device=c.device)).any()]
    return [*new, *prompts, *moved]
