"""Going on from a checkpoint: its state, under the settings that are given now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_spectral.errors import InputError
from lit_spectral.progress import begin_next_epoch
from lit_spectral.tasks.averaging import averaging
from lit_spectral.tasks.optimization import run_steps

__all__ = ["check_optimizer", "prepare", "put_back", "run_length"]

# What an optimizer remembers, or what that starts from, depends on these.
DEFINES_STATE = ("amsgrad", "centered", "initial_accumulator_value")


def prepare(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Make a checkpoint one to go on from: of the weights that were trained, and with callbacks' present settings.

    Raises:
        InputError: one without the optimizer's state, or from after the run's end.
    """
    if not checkpoint.get("optimizer_states"):
        raise InputError(
            "this checkpoint holds weights without the optimizer's state, with which a run would go on; give one "
            "that fit wrote with save_weights_only false, or begin anew at it, by --model.method.start_from"
        )
    if "epoch_progress" not in checkpoint["loops"].get("fit_loop", {}) or not all(
        "lr_lambdas" in schedule for schedule in checkpoint.get("lr_schedulers") or [{}]
    ):
        raise InputError("this checkpoint does not say where its run was; give one that fit wrote, as it wrote it")
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    done = {"max_epochs": progress["processed"], "max_steps": checkpoint["global_step"]}
    for name, count in done.items():
        limit = getattr(trainer, name)
        if limit is not None and -1 < limit < count:
            raise InputError(
                f"trainer.{name} {limit} is below the {count} that the checkpoint has behind it; give more, or no "
                "--ckpt_path"
            )
    if trainer.max_steps != -1:
        begin_next_epoch(checkpoint["loops"]["fit_loop"])
    if "current_model_state" in checkpoint and not averaging(trainer):
        checkpoint["state_dict"] = checkpoint.pop("current_model_state")  # in place of their averages
    for stop in trainer.early_stopping_callbacks:
        state = checkpoint.get("callbacks", {}).get(stop.state_key)
        if state is not None:
            state["patience"] = stop.patience  # it would be restored


def check_optimizer(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """InputError if an optimizer can't go on with the state of that whose `run_settings` were saved."""
    if saved["optimizer"] != ours["optimizer"]:
        raise InputError(
            f"the checkpoint's optimizer is {saved['optimizer']}, whose state {ours['optimizer']} can't go on with; "
            f"give --model.optimizer {saved['optimizer']}, or train anew, without --ckpt_path"
        )
    defining = [f"optimizer.{name}" for name in DEFINES_STATE]
    if bool(saved.get("optimizer.momentum")) != bool(ours.get("optimizer.momentum")):
        defining.append("optimizer.momentum")
    changed = [f"{key}: {saved.get(key)}, here {ours.get(key)}" for key in defining if saved.get(key) != ours.get(key)]
    if changed:
        raise InputError(
            f"the optimizer's state in the checkpoint is of another kind ({', '.join(changed)}); give its settings, "
            "or train anew, without --ckpt_path"
        )
    if saved["parameters"] != ours["parameters"]:
        raise InputError(
            "the optimizer's state in the checkpoint is of other parameters, or of another order of them, as other "
            "versions of transformers may have; use those that wrote it, or train anew, without --ckpt_path"
        )


def put_back(optimizer: Optimizer, options: list[dict[str, Any]], scheduler: LambdaLR, planned: LambdaLR) -> None:
    """Let the given settings act on an optimizer and a schedule that were restored from a checkpoint.

    Args:
        optimizer: with the checkpoint's state, and its settings.
        options: of the parameter groups, as they were given.
        scheduler: the optimizer's, as far as the checkpoint has got.
        planned: the schedule that is given.
    """
    for group, given in zip(optimizer.param_groups, options, strict=True):
        group.update(given)
    scheduler.base_lrs = [given["initial_lr"] for given in options]
    scheduler.lr_lambdas = planned.lr_lambdas
    for group, base, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(scheduler.last_epoch)


def run_length(trainer: pl.Trainer, saved: Mapping[str, Any], ours: Mapping[str, Any]) -> int:
    """Optimizer steps of a resumed run: those before its checkpoint, and those that are left.

    Args:
        trainer: with the checkpoint's progress.
        saved: the `run_settings` of the checkpoint.
        ours: those of now.
    """
    steps, epochs = run_steps(trainer), trainer.max_epochs
    same = all(saved[name] == ours[name] for name in ("batches an epoch", "trainer.accumulate_grad_batches"))
    if same or epochs is None or epochs == -1:
        return steps
    batches = int(trainer.num_training_batches)
    left = [batches] * (epochs - trainer.current_epoch)
    progress = trainer.fit_loop.epoch_loop.batch_progress
    if left and trainer.fit_loop.restarted_mid_epoch and not progress.is_last_batch:
        left[0] = max(batches - progress.current.ready, 0)
    steps = trainer.global_step + sum(math.ceil(count / trainer.accumulate_grad_batches) for count in left)
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
