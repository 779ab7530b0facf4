"""What is optimised at which rate: parameter groups, and the learning rate's schedule over a run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_spectral.adapters import adapters
from lit_spectral.errors import InputError, nearest, refusals_of

__all__ = ["build_schedule", "check_schedule", "parameter_groups", "run_steps"]


def parameter_groups(model: nn.Module, head: Sequence[nn.Module], head_lr: float) -> list[dict[str, Any]]:
    """The trained parameters by what they are, whatever their rates: a checkpoint has their state in this order.

    Args:
        model: adapted; its adapters declare ratios by name.
        head: the output layer of a new head, if there is one.
        head_lr: its ratio.

    Returns:
        Groups with `name` and `lr_ratio`; vectors (σ, biases, norms), which are never decayed, in groups of
        their own.
    """
    kinds = {
        id(getattr(adapter, name)): (name, ratio)
        for adapter in adapters(model)
        for name, ratio in adapter.lr_ratios.items()
    }
    kinds |= {id(parameter): ("head", head_lr) for layer in head for parameter in layer.parameters()}
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = defaultdict(list)
    for parameter in model.parameters():
        if parameter.requires_grad:
            name, ratio = kinds.get(id(parameter), ("rest", 1.0))
            groups[name, ratio, parameter.ndim > 1].append(parameter)
    return [
        {"params": parameters, "name": name if decays else f"{name}-vectors", "lr_ratio": ratio}
        | ({} if decays else {"weight_decay": 0.0})
        for (name, ratio, decays), parameters in groups.items()
    ]


def run_steps(trainer: pl.Trainer) -> int:
    """Optimizer steps of the whole run; InputError where it has no end, or none."""
    try:
        steps = trainer.estimated_stepping_batches
    except (ValueError, OverflowError) as error:  # which looks at the data too
        if isinstance(error, InputError):
            raise
        raise InputError(f"trainer: {error}") from error
    if not 0 <= steps < math.inf:  # below 0 where rows can't be counted
        raise InputError("the run has no end over which the learning rate could go; give --trainer.max_steps")
    if steps < 1:
        raise InputError("data: there is not one batch to train on; give more rows, or a smaller batch_size")
    return int(steps)


def check_schedule(name: str, warmup: float, steps: int, options: Mapping[str, Any]) -> None:
    """InputError for a schedule that there is not, or whose warm-up is none or does not end in so many steps."""
    if name is None or warmup is None:
        raise InputError("lr_scheduler and warmup_steps can't be null; leave them out for the defaults")
    if not 0 <= warmup < math.inf:
        raise InputError(f"warmup_steps must be finite and not negative, not {warmup}")
    if warmup and name == "constant":
        raise InputError("warmup_steps: lr_scheduler constant has none; give constant_with_warmup")
    if warmup >= 1 and 0 < steps < warmup:
        raise InputError(
            f"warmup_steps {warmup} is above the run's {steps} optimizer steps, in which the learning rate would "
            "not get to its value; give fewer, or below 1 a fraction of them"
        )
    factor = build_schedule(name, warmup, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), steps, options)
    # A long run's are many.
    with refusals_of(f"lr_scheduler: {name}", "give other lr_scheduler_options"):
        found = [factor.lr_lambdas[0](step) for step in range(0, steps + 1, max(1, steps // 1000))]
    if not all(0 <= each < math.inf for each in found):
        raise InputError(
            f"lr_scheduler: {name} has rates below 0 or beyond all numbers; give other lr_scheduler_options"
        )


def _linear(step: int, warmup: int, steps: int) -> float:
    """The factor of transformers' `linear`, up to 1 in `warmup` steps and down to 0 in the others."""
    return step / max(1, warmup) if step < warmup else max(0.0, (steps - step) / max(1, steps - warmup))


def build_schedule(name: str, warmup: float, optimizer: Optimizer, steps: int, options: Mapping[str, Any]) -> LambdaLR:
    """A schedule of transformers' `get_scheduler` over so many steps.

    Args:
        name: of the schedule.
        warmup: steps, or below 1 a fraction of them all.
        optimizer: whose groups' learning rates it scales.
        steps: of the run.
        options: what the schedule needs besides, such as `min_lr` of `cosine_with_min_lr`.

    Raises:
        InputError: no such schedule, none of steps alone, or options that it doesn't take or lacks.
    """
    planned = math.ceil(warmup if warmup >= 1 else warmup * steps)
    if name == "linear" and not options:  # transformers' bring all of peft and bitsandbytes in: seconds of a start
        return LambdaLR(optimizer, partial(_linear, warmup=planned, steps=steps))
    from transformers import SchedulerType, get_scheduler

    names = [each.value for each in SchedulerType]
    if name not in names:
        raise InputError(f"lr_scheduler: there is no {name!r}{nearest(name, names)}")
    with refusals_of(f"lr_scheduler: {name}", "give --model.lr_scheduler_options"):
        scheduler = get_scheduler(name, optimizer, planned, steps, scheduler_specific_kwargs=dict(options))
    if not isinstance(scheduler, LambdaLR):
        raise InputError(f"lr_scheduler: {name} follows a metric; give a schedule over steps")
    return scheduler
