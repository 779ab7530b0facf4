"""What every task shares: loading and adapting the backbone, optimising, checkpointing."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lit_spectral import backbones
from lit_spectral.adapters import Adapter, adapters, packed, trained_state
from lit_spectral.callbacks import (
    FactorRetraction,
    HeldBackbone,
    PredictionWriter,
    SigmaClamp,
    SpectralBall,
    SpectralMonitor,
)
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA, Method, Peft
from lit_spectral.run_folder import RunFolder
from lit_spectral.tasks.fit_check import backbone_digest, check_checkpoint
from lit_spectral.tasks.meaning import MeaningCheck, check_rates, check_steps, note_loading
from lit_spectral.tasks.penalties import (
    add_budget_gradients,
    add_gradients_of,
    add_orthogonality_gradients,
    budget_penalty,
    pull_to_orthogonality,
)

__all__ = ["Task"]

log = logging.getLogger(__name__)


def _adamw(params: Any) -> Optimizer:
    return torch.optim.AdamW(params, lr=4e-4, weight_decay=0.0)


class Task(pl.LightningModule):
    """A pretrained backbone, adapted by a method, trained on one kind of problem.

    The backbone is loaded in `configure_model`, so that building a task costs nothing and needs no
    file. A checkpoint holds what is trained, never the frozen backbone.

    Args:
        backbone: a hub id, a folder in Hugging Face format, or `tiny`, the built-in encoder.
        method: how it is adapted; None for LoRA of rank 8.
        optimizer: from parameter groups to an optimizer; AdamW at 4e-4 without decay by default.
            Groups scale its learning rate where an adapter declares a ratio, and vectors (σ,
            biases, norms) are never decayed.
        lr_scheduler: a schedule of transformers' `get_scheduler`, over all optimizer steps of the run.
        warmup_steps: linear warm-up: a number of optimizer steps, or below 1 a fraction of them all.
    """

    model: Any
    # Whether the part outside the pretrained encoder is trained, whatever the method.
    trains_head = True

    def __init__(
        self,
        backbone: str = "roberta-base",
        method: Method | None = None,
        optimizer: OptimizerCallable = _adamw,
        lr_scheduler: str = "linear",
        warmup_steps: float = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.method = method if method is not None else LoRA()
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.warmup_steps = warmup_steps
        self.model = None
        self.backbone_digest = ""
        self.skipped_steps = 0
        # Of each row of the batch that was predicted last: what `predict` writes.
        self.predicted: list[dict[str, Any]] = []
        # Names of weights that the backbone's files lack, and whether anything has been trained or loaded.
        self.new_weights: list[str] = []
        self.is_trained = False
        self.register_load_state_dict_post_hook(note_loading)  # type: ignore[no-untyped-call]
        # The frozen backbone isn't in the checkpoint; on_load_checkpoint checks the keys that are.
        self.strict_loading = False
        self._rng_state: Tensor | None = None
        self._output_layer: nn.Linear | None = None
        self._penalised: list[Adapter] = []
        self._budgets: list[Adapter] = []

    @abstractmethod
    def load_model(self, folder: str) -> tuple[nn.Module, list[str]]:
        """The Hugging Face model with this task's head, and the names of weights its files lacked."""

    def prepare_data(self) -> None:
        """Fetch the backbone, on one process only."""
        backbones.fetch(self.backbone)

    def configure_model(self) -> None:
        """Load the backbone, freeze it, adapt it; a second call does nothing.

        What was missing in the backbone's files is trained, and so is the head where `trains_head`.
        """
        if self.model is not None:
            return
        model, missing = self.load_model(backbones.fetch(self.backbone))
        encoder = model.base_model
        assert isinstance(encoder, nn.Module)
        inside = {id(p) for p in encoder.parameters()}
        new = {
            id(p)
            for name, p in model.named_parameters()
            if name in missing or (self.trains_head and id(p) not in inside)
        }
        outside = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) in new]
        self._output_layer = outside[-1] if outside else None
        self.backbone_digest = backbone_digest([p for p in encoder.parameters() if id(p) not in new])
        adapted = self.method.apply(model, encoder)
        for name, parameter in adapted.named_parameters():
            if id(parameter) in new and ".original_module." not in name:  # peft trains a copy of that
                parameter.requires_grad_(True)
        self.model, self.new_weights = adapted.train(), missing
        self._penalised = [adapter for adapter in adapters(model) if adapter.penalty_weight > 0]
        self._budgets = [adapter for adapter in adapters(model) if adapter.budget is not None]

    @property
    def encoder(self) -> nn.Module:
        """The pretrained part of the model, where the adapters are."""
        encoder: nn.Module = self.model.base_model
        return encoder

    def evaluation_sets(self) -> list[str]:
        """Names under which sets are logged now: those of the data module, `test` or `val` if it has none."""
        tested = self.trainer.testing or self.trainer.predicting
        attribute, default = ("test_sets", "test") if tested else ("evaluation_sets", "val")
        names: list[str] = getattr(getattr(self.trainer, "datamodule", None), attribute, [default])
        return names

    def configure_callbacks(self) -> list[Callback]:
        """Those that adapters, the backbone and a run's files need, unless the trainer has its own."""
        present = self.trainer.callbacks  # type: ignore[attr-defined]
        defaults: list[type[Callback]] = [FactorRetraction, SigmaClamp, SpectralBall, SpectralMonitor, HeldBackbone]
        defaults += [MeaningCheck, PredictionWriter, RunFolder]
        added = [kind() for kind in defaults if not any(isinstance(callback, kind) for callback in present)]
        for callback in [*present, *added]:
            if isinstance(callback, (MeaningCheck, RunFolder)):
                callback.before(self.trainer)  # anything is read or written
        return added

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer over groups of one learning-rate ratio and decay, and its schedule."""
        from transformers import get_scheduler

        groups = self._parameter_groups()
        if not groups:
            raise InputError(f"model.method: {type(self.method).__name__} leaves nothing of this model to train")
        optimizer = self.optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group["lr_ratio"]
            if {"fused", "foreach"} <= group.keys() and group["fused"] is None and group["foreach"] is None:
                group["fused"] = True  # one call for all parameters; torch's own choice is a loop on CPUs
        steps = check_steps(self.trainer.estimated_stepping_batches)
        warmup = self.warmup_steps if self.warmup_steps >= 1 else self.warmup_steps * steps
        scheduler = get_scheduler(self.lr_scheduler, optimizer, math.ceil(warmup), steps)
        check_rates(optimizer, scheduler, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        ratio_of = {
            id(getattr(adapter, name)): ratio
            for adapter in adapters(self.model)
            for name, ratio in adapter.lr_ratios.items()
        }
        if self._output_layer is not None:
            ratio_of |= {id(parameter): self.method.head_lr for parameter in self._output_layer.parameters()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                groups[ratio_of.get(id(parameter), 1.0), parameter.ndim > 1].append(parameter)
        return [
            {"params": params, "lr_ratio": ratio} | ({} if decays else {"weight_decay": 0.0})
            for (ratio, decays), params in groups.items()
        ]

    def logged_metrics(self) -> list[str]:
        """Names of the metrics that this fit logs for checkpoints and early stopping to go by."""
        names: dict[str, Any] = {"train/orthogonality_penalty": self._penalised, "train/budget_penalty": self._budgets}
        names["train/method_penalty"] = isinstance(self.method, Peft)
        return ["train/loss", "train/skipped_steps", "sigma_max", *(name for name, present in names.items() if present)]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the penalties and add the gradients of those that go that way, once an optimizer step.

        They are never part of the loss.
        """
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

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, and let the method follow unless the step was skipped."""
        skipped = self.skipped_steps
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.skipped_steps == skipped:
            self.method.after_step()

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
        if not torch.isfinite(norm):
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

    def on_fit_start(self) -> None:
        """Refuse precisions in which a bound can't be held."""
        held = [a for a in adapters(self.model) if a.bounded or a.ball_radius is not None or a.confined or a.retracted]
        if held and str(self.trainer.precision) in {"bf16-true", "16-true"}:
            raise InputError(
                f"--trainer.precision {self.trainer.precision} rounds factors out of the set that holds them; "
                "give bf16-mixed"
            )

    def on_train_start(self) -> None:
        """Buffers, which never change, are made equal once, by DDP's start, and not before every forward pass."""
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self.trainer.strategy.model.broadcast_buffers = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Continue the random numbers of the run that was resumed."""
        if self._rng_state is not None:
            torch.set_rng_state(self._rng_state)
            self._rng_state = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and how to rebuild the rest."""
        checkpoint["state_dict"] = packed(self._trained())
        progress = {"rng_state": torch.get_rng_state(), "skipped_steps": self.skipped_steps}
        checkpoint["lit_spectral"] = self._identity() | progress | {"method_state": self.method.state_dict()}

    def _trained(self) -> dict[str, Tensor]:
        return {f"model.{name}": tensor for name, tensor in trained_state(self.model).items()}

    def _identity(self) -> dict[str, Any]:
        return {
            "task": type(self).__name__,
            "init": self.checkpoint_init(),
            "method": {"name": type(self.method).__name__, **asdict(self.method)},
            "defines_change": list(self.method.defines_change),
            "backbone_digest": self.backbone_digest,
        }

    def checkpoint_init(self) -> dict[str, Any]:
        """Arguments, all primitive, with which `lit_spectral.load` builds this task again."""
        return {"backbone": self.backbone}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit, naming what differs."""
        saved = checkpoint.get("lit_spectral")
        if saved is None:
            raise InputError("this checkpoint was not written by lit-spectral; it names no method or backbone")
        check_checkpoint(saved, checkpoint["state_dict"], self._identity(), self._trained())
        self._rng_state = saved["rng_state"]
        self.skipped_steps = saved["skipped_steps"]
        self.method.load_state_dict(saved["method_state"])
        self.is_trained = True
