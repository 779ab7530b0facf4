"""What every task shares: loading and adapting the backbone, optimising, checkpointing."""

from __future__ import annotations

import copy
import logging
import os
from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_spectral import backbones
from lit_spectral.adapters import Adapter, adapters, named_changes, refuse_folded, trained_state
from lit_spectral.callbacks import (
    FactorRetraction,
    HeldBackbone,
    PredictionWriter,
    SigmaClamp,
    SpectralBall,
    SpectralMonitor,
)
from lit_spectral.checkpoint_file import guard, read, saved_by_task, tensor_digests, unguard
from lit_spectral.datamodules.text import TextDataModule
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA, Method, Peft
from lit_spectral.run_folder import RunFolder
from lit_spectral.tasks import rebuild, resume
from lit_spectral.tasks.averaging import average_what_is_trained, check_averaging, put_averages
from lit_spectral.tasks.fit_check import (
    backbone_digest,
    check_attached,
    check_checkpoint,
    check_gradients,
)
from lit_spectral.tasks.meaning import MeaningCheck, check_rates, note_loading
from lit_spectral.tasks.objective import Objective
from lit_spectral.tasks.optimization import build_schedule, check_schedule, parameter_groups, run_steps
from lit_spectral.tasks.padding_check import check_padding
from lit_spectral.tasks.penalties import (
    add_budget_gradients,
    add_gradients_of,
    add_orthogonality_gradients,
    budget_penalty,
    pull_to_orthogonality,
)
from lit_spectral.tasks.saved_weights import complete, keep_trained, plain, put_in_place
from lit_spectral.tasks.settings import differences, run_settings, same_seed

if TYPE_CHECKING:
    from typing_extensions import Self

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
            biases, norms) are never decayed. In a resumed run its settings are those given then.
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
        self.method = copy.copy(method) if method is not None else LoRA()  # what it remembers is of this task
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
        self._objective = Objective()
        self._gradients_checked = False
        self._attached: list[str] | None = None  # paths of the method's changes
        # Settings of the run, of its parameter groups, and of the checkpoint that it goes on from.
        self._settings: dict[str, Any] = {}
        self._options: list[dict[str, Any]] = []
        self._resumed: dict[str, Any] | None = None
        self._differences: list[str] = []
        self._output_layers: list[nn.Linear] = []  # in a list, so that it isn't a second module of the task
        self._penalised: list[Adapter] = []
        self._budgets: list[Adapter] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Task:
        """As of any module, but for the optimizer callable: the command line's can't be copied."""
        memo[id(self.optimizer)] = self.optimizer
        memo[id(self)] = new = type(self).__new__(type(self))
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return new

    @abstractmethod
    def load_model(self, folder: str) -> tuple[nn.Module, list[str]]:
        """The Hugging Face model with this task's head, and the names of weights its files lacked."""

    def prepare_data(self) -> None:
        """Fetch the backbone, on one process only."""
        backbones.fetch(self.backbone)

    def configure_model(self) -> None:
        """Load the backbone, freeze it, adapt it, unless that is done, and agree with the data on how rows are padded.

        What was missing in the backbone's files is trained, and so is the head where `trains_head`.
        A fit that could not do as it was told is refused here, before anything is computed.
        """
        if self._trainer is not None:
            guard(self.trainer)
        if self._fits:
            self._begin()
        if self.model is None:
            self._adapt()
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, TextDataModule):
            backbones.tell_padding(self.model, data.tokenizer)
            if max(data.batch_size, data.eval_batch_size) > 1:
                data.padding_side = check_padding(self.model, data.tokenizer)

    def _adapt(self) -> None:
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
        self._output_layers = outside[-1:]
        self.backbone_digest = backbone_digest([p for p in encoder.parameters() if id(p) not in new])
        adapted = self.method.apply(model, encoder)
        for name, parameter in adapted.named_parameters():
            if id(parameter) in new and ".original_module." not in name:  # peft trains a copy of that
                parameter.requires_grad_(True)
        self.model, self.new_weights = adapted.train(), missing
        self._penalised = [adapter for adapter in adapters(model) if adapter.penalty_weight > 0]
        self._budgets = [adapter for adapter in adapters(model) if adapter.budget is not None]
        self._attached = list(named_changes(adapted))

    def teardown(self, stage: str) -> None:
        """Leave the trainer as it was."""
        unguard(self.trainer)

    @property
    def _fits(self) -> bool:
        trainer: Any = self._trainer
        return trainer is not None and bool(trainer.training)

    def _begin(self) -> None:
        """Forget earlier runs, and check that the model and all schedules are fit for this one."""
        self._resumed, self._rng_state, self._settings, self.skipped_steps = None, None, {}, 0
        self._objective, self._gradients_checked = Objective(), False
        check_averaging(self.trainer, self.method.allocates)
        if self.model is not None:
            refuse_folded(self.model, "fit")
            check_attached(self.model, self._attached)
            self.method.restart()
            self.train()  # after an evaluation, which may have broken off
        with torch.device("cpu"):  # where the data is; models may be built elsewhere
            self._plan(run_steps(self.trainer))

    def _plan(self, steps: int) -> None:
        trainer: Any = self.trainer
        # To look whether something runs, no schedule need be gone through.
        with suppress(InputError) if trainer.fast_dev_run else nullcontext():
            self.method.plan(steps)
            check_schedule(self.lr_scheduler, self.warmup_steps, steps)

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
        """The optimizer over groups of one kind of parameters, and its schedule."""
        groups = parameter_groups(self.model, self._output_layers, self.method.head_lr)
        if not groups:
            raise InputError(f"model.method: {type(self.method).__name__} leaves nothing of this model to train")
        optimizer = self.optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group["lr_ratio"]
            if {"fused", "foreach"} <= group.keys() and group["fused"] is None and group["foreach"] is None:
                group["fused"] = True  # one call for all parameters; torch's own choice is a loop on CPUs
        steps = run_steps(self.trainer)
        self._plan(steps)
        scheduler = build_schedule(self.lr_scheduler, self.warmup_steps, optimizer, steps)
        check_rates(optimizer, scheduler, steps)
        self._options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        schedule = {"lr_scheduler": self.lr_scheduler, "warmup_steps": self.warmup_steps}
        self._settings = run_settings(self.trainer, self, optimizer, **schedule)
        if self._resumed:
            resume.check_optimizer(self._resumed, self._settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

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
        names["train/method_penalty"] = isinstance(self.method, Peft)
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
        average_what_is_trained(self.trainer, self)

    def on_train_start(self) -> None:
        """Buffers, which never change, are made equal once, by DDP's start, and not before every forward pass.

        In a resumed run the settings that are given act from here on, and those that differ are named.
        """
        if self._resumed and self._settings:  # a task may build its optimizer otherwise
            self._go_on(self._resumed)
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self.trainer.strategy.model.broadcast_buffers = False

    def _go_on(self, saved: dict[str, Any]) -> None:
        optimizer, scheduler = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(scheduler, LambdaLR)
        steps = resume.run_length(self.trainer, saved, self._settings)
        self._plan(steps)
        planned = build_schedule(self.lr_scheduler, self.warmup_steps, optimizer, steps)
        resume.put_back(optimizer, self._options, scheduler, planned)
        changed = self._differences + differences(saved, self._settings)
        if changed and self.trainer.is_global_zero:
            log.warning("settings that are not the checkpoint's, and act from here on: %s", "; ".join(changed))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Continue the random numbers of the run that was resumed."""
        if self._rng_state is not None:
            torch.set_rng_state(self._rng_state)
            self._rng_state = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep of the weights that are there, averages perhaps, what is trained, and how to rebuild the rest."""
        put_averages(self.trainer, self, checkpoint)
        keep_trained(checkpoint, self.state_dict(), self._trained())
        progress = {"rng_state": torch.get_rng_state(), "skipped_steps": self.skipped_steps}
        run = {"settings": self._settings, "method_state": self.method.state_dict()}
        # One process writes it. What others put among the weights must be there by now.
        digests = {"digests": tensor_digests(checkpoint) if self.trainer.is_global_zero else {}}
        checkpoint["lit_spectral"] = self._identity() | progress | run | digests

    def _trained(self) -> dict[str, Tensor]:
        return {plain(f"model.{name}"): tensor for name, tensor in trained_state(self.model).items()}

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
        """Refuse a checkpoint that does not fit, or that a fit can't go on from, naming what differs."""
        saved, resumes = saved_by_task(checkpoint), self._fits
        refuse_folded(self.model, "a checkpoint")
        if resumes:
            resume.prepare(self.trainer, checkpoint)
        live, trained = self.state_dict(), self._trained()
        found = put_in_place(checkpoint, live)
        at_start = self.method.acts_at_start if resumes else ()
        self._differences = check_checkpoint(saved, found, self._identity(), trained, at_start)
        self.method.load_state_dict(saved["method_state"])
        complete(checkpoint, live, trained)
        if resumes:
            self._resumed, self.skipped_steps = saved["settings"], saved["skipped_steps"]
            self._rng_state = saved["rng_state"] if same_seed(saved["settings"]) else None
            if self._resumed and self._settings:  # a strategy that restores after the optimizer was built
                resume.check_optimizer(saved["settings"], self._settings)
        self.is_trained = True

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | os.PathLike[str],
        map_location: str | torch.device | None = None,
        *,
        weights_only: bool | None = None,
        **given: Any,
    ) -> Self:
        """The task of a checkpoint: backbone loaded, adapter attached, trained weights in place.

        Args:
            checkpoint_path: a `.ckpt` that `fit` wrote.
            map_location: the device that the task is put on; None for the CPU.
            weights_only: which always holds; false is refused.
            given: arguments of the task, `backbone` say, in place of those that the checkpoint names.

        Raises:
            InputError: as in `lit_spectral.checkpoint_file.read`; a checkpoint of another class of task, or
                one that does not fit the backbone.
        """
        content = read(checkpoint_path, weights_only)
        saved = saved_by_task(content)
        try:
            kind: Any = rebuild.class_of(saved, cls)
            task: Self = kind(**rebuild.arguments(saved, given))
        except InputError as error:
            raise InputError(f"checkpoint: {checkpoint_path}: {error}") from error
        task.configure_model()
        task.on_load_checkpoint(content)
        task.load_state_dict(content["state_dict"], strict=False)
        return task.to(map_location or "cpu")
