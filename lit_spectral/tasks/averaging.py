"""Lightning's weight averaging of an adapted model: of what is trained alone, and within the adapters' sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from lightning.pytorch.callbacks.weight_averaging import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from lit_spectral.adapters import Adapter, adapters
from lit_spectral.callbacks.projection import Projection, projector
from lit_spectral.errors import InputError

__all__ = ["average_what_is_trained", "averaging", "begin_averages", "check_averaging", "put_averages"]


def averaging(trainer: pl.Trainer) -> list[WeightAveraging]:
    """The trainer's callbacks that average weights."""
    present: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in present if isinstance(callback, WeightAveraging)]


def check_averaging(trainer: pl.Trainer, allocates: bool) -> None:
    """Let averaging callbacks begin anew; InputError where their averages would be none of the model that is trained.

    Args:
        trainer: about to fit.
        allocates: whether the method gives up parts of ΔW while it trains.
    """
    present: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, StochasticWeightAveraging) for callback in present):
        raise InputError(
            "StochasticWeightAveraging copies the model before it is loaded, and averages nothing; "
            "give WeightAveraging or EMAWeightAveraging in trainer.callbacks"
        )
    if len(averaging(trainer)) > 1:
        raise InputError("trainer.callbacks: a checkpoint holds the averages of one callback; give one alone")
    for callback in averaging(trainer):
        if allocates:
            raise InputError(
                f"{type(callback).__name__} would average ranks that AdaLoRA has given up with those that it keeps; "
                "leave it out of trainer.callbacks"
            )
        # Those of an earlier fit: nothing would be averaged until there are more.
        callback.load_state_dict({"latest_update_step": 0})


def begin_averages(trainer: pl.Trainer, task: nn.Module) -> None:
    """Have averages begin where the task is now; they were copied before it was there."""
    for callback in averaging(trainer):
        average = callback._average_model  # nothing public gives it
        assert average is not None
        average.module.load_state_dict(task.state_dict())


def put_averages(trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Have averages in a checkpoint of weights alone too, for which Lightning does not ask callbacks."""
    if "optimizer_states" not in checkpoint:
        for callback in averaging(trainer):
            callback.on_save_checkpoint(trainer, task, checkpoint)
            checkpoint.pop("current_model_state", None)
            checkpoint.pop("averaging_state", None)


def average_what_is_trained(trainer: pl.Trainer, task: nn.Module) -> None:
    """Keep averages to what is trained; the rest is the task's own, neither copied, nor averaged with itself.

    Averaged with itself, a frozen weight drifts by rounding, and an integer, such as a position, is cut to
    the one below. The averages are put back into the sets that the adapters declare, as the model is after
    every step: averages of factors need not lie there.
    """
    for callback in averaging(trainer):
        average = callback._average_model  # nothing public gives it
        assert average is not None
        _share_frozen(task, average.module)
        _average_alone(average, [p for p in average.module.parameters() if p.requires_grad])
        _hold(average, [c for c in trainer.callbacks if isinstance(c, Projection)])  # type: ignore[attr-defined]


def _share_frozen(task: nn.Module, copy: nn.Module) -> None:
    """Let a copy of the task have its frozen tensors themselves; what adapters project by stays where they are."""
    copies = dict(copy.named_modules())
    for path, module in task.named_modules():
        if path in copies and not isinstance(module, Adapter):
            frozen = [(name, p) for name, p in module.named_parameters(recurse=False) if not p.requires_grad]
            for name, tensor in [*frozen, *module.named_buffers(recurse=False)]:
                setattr(copies[path], name, tensor)


def _average_alone(average: AveragedModel, trained: list[nn.Parameter]) -> None:
    places = {parameter.data_ptr() for parameter in trained}
    together: Any = average.multi_avg_fn

    def one(averaged: Tensor, current: Tensor, count: Any) -> Tensor:
        return one_by_one(averaged, current, count) if averaged.data_ptr() in places else averaged

    def several(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Any) -> None:
        kept = [index for index, tensor in enumerate(averaged) if tensor.data_ptr() in places]
        if kept and together is not None:
            together([averaged[i] for i in kept], [current[i] for i in kept], count)

    if together is None:
        one_by_one = average.avg_fn or get_swa_avg_fn()  # type: ignore[no-untyped-call]
        average.avg_fn = one
    else:
        average.multi_avg_fn = several


def _hold(average: AveragedModel, projections: list[Projection]) -> None:
    update, project = average.update_parameters, projector(projections, adapters(average.module))

    def update_and_project(model: nn.Module) -> None:
        update(model)
        project()

    average.update_parameters = update_and_project  # type: ignore[method-assign]
