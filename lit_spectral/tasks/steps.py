"""What an optimizer step of an adapted model is: a mean over micro-batches, with the penalties beside it."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from lit_spectral.adapters import Adapter
from lit_spectral.errors import InputError
from lit_spectral.methods import Method, Peft
from lit_spectral.progress import Progress
from lit_spectral.tasks.anchor import Anchor
from lit_spectral.tasks.fit_check import check_gradients
from lit_spectral.tasks.objective import Objective
from lit_spectral.tasks.penalties import (
    add_budget_gradients,
    add_gradients_of,
    add_orthogonality_gradients,
    budget_penalty,
    pull_to_orthogonality,
)

__all__ = ["SteppedModule"]

log = logging.getLogger(__name__)

# Steps in a row without a finite gradient, after which no later one is hoped for. A gradient scaler, which starts at
# 2^16 and halves at each, has found its scale by then.
MOST_SKIPPED = 25


class SteppedModule(pl.LightningModule):
    """A module with an adapted `model` and the `method` that adapted it, as it is optimised.

    Attributes:
        skipped_steps: steps that were dropped, since their gradient was not finite.
    """

    model: Any
    method: Method
    anchor: Anchor | None

    def __init__(self) -> None:
        super().__init__()
        self.skipped_steps = self._skipped_in_a_row = 0
        self._objective, self._progress = Objective(), Progress()
        self._gradients_checked = False
        self._penalised: list[Adapter] = []
        self._budgets: list[Adapter] = []
        self._anchoring: Any = None  # lit_spectral.retention's, which is made of what imports this

    def _start_steps(self) -> None:
        """Forget the steps of earlier fits."""
        self.skipped_steps = self._skipped_in_a_row = 0
        self._objective, self._progress, self._gradients_checked = Objective(), Progress(), False
        self._anchoring = None

    def _penalise(self, attached: list[Adapter]) -> None:
        """Add the penalties that these adapters declare to every step."""
        self._penalised = [adapter for adapter in attached if adapter.penalty_weight > 0]
        self._budgets = [adapter for adapter in attached if adapter.budget is not None]

    @abstractmethod
    def summed_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | int]:
        """The task's own of a batch, 0-d, and over how many tokens, windows or rows it is summed."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean over what the step scores, as `mean_loss` has it."""
        return self.mean_loss(*self.summed_loss(batch))

    def mean_loss(self, summed: Tensor, count: Tensor | int) -> Tensor:
        """What `training_step` returns of a batch's summed loss and what it is summed over: tokens, rows.

        The objective of an optimizer step is the mean over all that its micro-batches score on all processes,
        logged as `train/loss`.
        """
        if self._trainer is None:  # called by hand
            return summed / max(float(count), 1.0)
        return self._objective.part(summed, count, self.trainer)

    def logged_metrics(self) -> list[str]:
        """Names of the metrics that this fit logs for checkpoints and early stopping to go by."""
        names: dict[str, Any] = {"train/orthogonality_penalty": self._penalised, "train/budget_penalty": self._budgets}
        names |= {"train/method_penalty": isinstance(self.method, Peft), "train/anchor": self.anchor}
        return ["train/loss", "train/skipped_steps", "sigma_max", *(name for name, present in names.items() if present)]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the loss and the penalties, and add the gradients of those that go that way, once an optimizer step.

        They are never part of the loss.
        """
        if self._objective.value is not None:
            self.log("train/loss", self._objective.value, prog_bar=True)
        coupled = [adapter for adapter in self._penalised if not adapter.decoupled_penalty]
        if coupled:
            self.log("train/orthogonality_penalty", add_orthogonality_gradients(coupled))
        if self._budgets:
            self.log("train/budget_penalty", budget_penalty(self._budgets))
            add_budget_gradients(self._budgets)
        penalty = self.method.penalty()
        if penalty is not None:
            self.log("train/method_penalty", penalty.detach())
            add_gradients_of(penalty, [p for p in self.model.parameters() if p.grad is not None])
        if self._anchoring is not None and self._anchoring.settings.is_due(self.global_step):
            distance = float(self._anchoring.add_gradients(self))
            self.log("train/anchor", distance, prog_bar=True, logger=False)
            for logger in self.loggers:  # by themselves: Lightning would repeat it for steps that have none
                logger.log_metrics({"train/anchor": distance}, step=self.global_step)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step on the mean of all micro-batches, and let the method follow unless the step was skipped."""

        def closure() -> Any:
            result = optimizer_closure() if optimizer_closure is not None else None
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._objective.finish(gradients, self.trainer)
            if not self._gradients_checked:
                check_gradients(self.model)
                self._gradients_checked = True
            return result

        skipped = self.skipped_steps
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        if self.skipped_steps == skipped:
            self.method.after_step()
        self._progress.stepped(self.trainer)

    def on_train_epoch_end(self) -> None:
        """Note where a run would go on that is interrupted early in the next epoch."""
        self._progress.epoch_ended(self.trainer)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and drop the step when the gradient's norm is not finite.

        Optimizers pass over parameters without a gradient, so such a step changes neither weights
        nor optimizer state, in any precision.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self._skipped_in_a_row = 0 if torch.isfinite(norm) else self._skipped_in_a_row + 1
        if self._skipped_in_a_row:
            self._stop_if_hopeless()
            for parameter in parameters:
                parameter.grad = None
            self.skipped_steps += 1
            log.warning("step %d skipped: the gradient's norm is %s", self.global_step, float(norm))
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            decoupled = [adapter for adapter in self._penalised if adapter.decoupled_penalty]
            if decoupled:
                group = optimizer.param_groups[0]
                value = pull_to_orthogonality(decoupled, group["lr"] / group["lr_ratio"])
                self.log("train/orthogonality_penalty", value)
        self.log("train/skipped_steps", float(self.skipped_steps))

    def _stop_if_hopeless(self) -> None:
        """InputError after MOST_SKIPPED steps in a row."""
        if self._skipped_in_a_row < MOST_SKIPPED:
            return
        odd = (n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all())
        raise InputError(
            f"fit: the gradient was not finite in {MOST_SKIPPED} steps in a row, of {next(odd, 'the model')} first; "
            "give a smaller learning rate, or undamaged weights and data"
        )
