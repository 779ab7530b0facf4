"""What every task shares: a backbone that is loaded and adapted, and what a run of it needs."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_spectral import backbones
from lit_spectral.adapters import adapters, named_wrappers, refuse_folded, trained_state
from lit_spectral.backbone_digest import backbone_digest
from lit_spectral.callbacks import (
    FactorRetraction,
    FrobeniusBall,
    HeldBackbone,
    Lockstep,
    LoggedCurve,
    PredictionWriter,
    SigmaClamp,
    SpectralBall,
    SpectralMonitor,
)
from lit_spectral.checkpoint_file import guard, unguard
from lit_spectral.datamodules.text import TextDataModule
from lit_spectral.errors import InputError, refusals_of
from lit_spectral.methods import LoRA, Method
from lit_spectral.run_folder import RunFolder
from lit_spectral.strategies import check_adapted, check_strategy, pass_by_shards, shard_for, shards
from lit_spectral.tasks import resume
from lit_spectral.tasks.anchor import Anchor
from lit_spectral.tasks.averaging import average_what_is_trained, check_averaging
from lit_spectral.tasks.continuing import begin, keep_out, stand_on
from lit_spectral.tasks.fit_check import check_attached
from lit_spectral.tasks.meaning import MeaningCheck, check_rates
from lit_spectral.tasks.optimization import build_schedule, check_schedule, parameter_groups, run_steps
from lit_spectral.tasks.padding_check import check_length, check_padding, check_tokens
from lit_spectral.tasks.saved_weights import always_trained
from lit_spectral.tasks.settings import differences, run_settings
from lit_spectral.tasks.stored import StoredModule

__all__ = ["Task"]

log = logging.getLogger(__name__)


def _built(make: OptimizerCallable, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer; InputError where torch refuses its settings, or it can't go with adapters."""
    with refusals_of("model.optimizer", "give other settings of it, or another"):
        optimizer = make(groups)
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise InputError("model.optimizer: maximize would make the loss as large as can be; leave it out")
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise InputError(
            "model.optimizer: differentiable is for derivatives of steps, which are not taken; leave it out"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise InputError("model.optimizer: SparseAdam is for sparse gradients, which adapters have none of; give AdamW")
    return optimizer


def _checkpoint_gradients(model: Any) -> None:
    """Have a model keep no more than each layer's input; InputError where transformers can't."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise InputError(f"model.gradient_checkpointing: {type(model).__name__} has none; leave it out")
    # The other kind needs inputs with gradients, which frozen embeddings don't give.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@contextmanager
def _float32_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _anchoring() -> Any:
    from lit_spectral.retention import anchoring  # which stands on tasks

    return anchoring


def _adamw(params: Any) -> Optimizer:
    return torch.optim.AdamW(params, lr=4e-4, weight_decay=0.0)


class Task(StoredModule):
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
        lr_scheduler_options: what the schedule needs besides, such as `{min_lr_rate: 0.1}` of `cosine_with_min_lr`.
        dtype: of the backbone's weights: float32, bfloat16, float16, or `auto`, the files' own. Adapters, their
            optimizer's state and all spectra are in float32 whatever it is.
        attn_implementation: `eager`, `sdpa`, `flash_attention_2`, …; None for transformers' choice.
        revision: a branch, tag or commit of a hub id; None for its main branch.
        trust_remote_code: run code that lies beside the model on the hub or in its folder.
        gradient_checkpointing: compute each layer again on the way back in place of keeping what it made.
        quantization: `nf4` or `int8` for linear maps of 4 or 8 bits, by bitsandbytes; None for floats. Spectra are
            those of the values that the codes stand for. Its checkpoints fit the unquantised backbone too.
        anchor: a penalty on how far the model is from the backbone, every few steps; None for none.
    """

    # Of this package's data modules those whose rows the task can read; all of a user's own.
    data_modules: ClassVar[tuple[type[TextDataModule], ...]] = ()
    # Whether the part outside the pretrained encoder is trained, whatever the method.
    trains_head = True

    def __init__(
        self,
        backbone: str = "roberta-base",
        method: Method | None = None,
        optimizer: OptimizerCallable | None = _adamw,
        lr_scheduler: str = "linear",
        warmup_steps: float = 0,
        lr_scheduler_options: dict[str, Any] | None = None,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        attn_implementation: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        gradient_checkpointing: bool = False,
        quantization: Literal["nf4", "int8"] | None = None,
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__()
        if not backbone:
            raise InputError("model.backbone: none is given; give a hub id, a folder, or tiny")
        self.backbone = backbone
        self.method = copy.copy(method) if method is not None else LoRA()  # what it remembers is of this task
        self.optimizer: OptimizerCallable = _adamw if optimizer is None else optimizer  # a config's null
        self.lr_scheduler = lr_scheduler
        self.warmup_steps = warmup_steps
        self.lr_scheduler_options = lr_scheduler_options or {}
        self.loading = backbones.Loading(dtype, attn_implementation, revision, trust_remote_code, quantization)
        self.gradient_checkpointing = gradient_checkpointing
        self.anchor = anchor if anchor is not None and anchor.weight else None
        self.model = None
        # Of each row of the batch that was predicted last: what `predict` writes.
        self.predicted: list[dict[str, Any]] = []
        self._attached: list[str] | None = None  # paths of the method's changes
        self._keeps_out = False  # of what the method's `after` names
        self._options: list[dict[str, Any]] = []  # settings of the parameter groups
        self._output_layers: list[nn.Linear] = []  # in a list, so that it isn't a second module of the task

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

    def load(self, auto_class: Any, folder: str, **kwargs: Any) -> tuple[nn.Module, list[str]]:
        """As `backbones.load_model`, in the way that this task is told to."""
        return backbones.load_model(auto_class, folder, self.loading, **kwargs)

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
            with _float32_by_default():  # under bf16-true what is made here would be rounded
                self._adapt()
        if self._fits and self.anchor is not None:
            _anchoring().check_base(self)
        if self._fits and not self._keeps_out:
            keep_out(self)
            self._keeps_out = True
        owned = trained_state(self.model).keys()
        kept = {p for name, p in self.model.named_parameters() if name in owned}
        shard_for(self._trainer, self.model, self.encoder, kept)  # one that was made before, without this trainer
        pass_by_shards(self)
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, TextDataModule):
            backbones.tell_padding(self.model, data.tokenizer)
            check_tokens(self.model, data)
            check_length(self.model, data)
            if max(data.batch_size, data.eval_batch_size) > 1:
                data.padding_side = check_padding(self.model, data.tokenizer)

    def _adapt(self) -> None:
        # Lightning's default device is the GPU here, which a backbone that is to be sharded may not fit.
        with torch.device("cpu") if shards(self._trainer) else nullcontext():
            model, missing = self.load_model(backbones.fetch(self.backbone))
        if self.gradient_checkpointing:
            _checkpoint_gradients(model)
        encoder = model.base_model
        assert isinstance(encoder, nn.Module)
        new = always_trained(model, missing, self.trains_head)
        self.backbone_digest = backbone_digest(encoder, new)
        stand_on(self, model)
        outside = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) in new]
        self._output_layers = outside[-1:]
        shard_for(self._trainer, model, encoder, {p for p in model.parameters() if id(p) in new})
        self.method.prepare(self.backbone, self.backbone_digest, missing, self.loading)
        adapted = self.method.apply(model, encoder)
        for name, parameter in adapted.named_parameters() if self.method.trains else ():
            if id(parameter) in new and ".original_module." not in name:  # peft trains a copy of that
                parameter.requires_grad_(True)
        check_adapted(model, adapted, type(self.method).__name__)
        self.model, self.new_weights = adapted.train(), missing
        self.is_trained = self.is_trained or not self.method.trains
        self._penalise(adapters(model))
        self._attached = list(named_wrappers(adapted))

    def teardown(self, stage: str) -> None:
        """Leave the trainer as it was."""
        unguard(self.trainer)

    def _begin(self) -> None:
        """Forget earlier runs, and check that the model and all schedules are fit for this one."""
        if not self.method.trains:
            raise InputError(
                f"model.method: {type(self.method).__name__} puts on what was trained before, and trains nothing; give "
                "another one to fit, or validate, test or predict"
            )
        self._start_steps()
        self._start_anew()
        if self.anchor is not None:
            _anchoring().check_text(self, self.anchor)
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
            check_schedule(self.lr_scheduler, self.warmup_steps, steps, self.lr_scheduler_options)

    def _schedule(self, optimizer: Optimizer, steps: int) -> LambdaLR:
        return build_schedule(self.lr_scheduler, self.warmup_steps, optimizer, steps, self.lr_scheduler_options)

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
        check_strategy(self.trainer)
        self._check_data()
        present = self.trainer.callbacks  # type: ignore[attr-defined]
        defaults: list[type[Callback]] = [FactorRetraction, SigmaClamp, SpectralBall, FrobeniusBall]
        defaults += [SpectralMonitor, HeldBackbone, MeaningCheck, PredictionWriter, RunFolder, LoggedCurve]
        defaults += [Lockstep] if shards(self.trainer) else []
        added = [kind() for kind in defaults if not any(isinstance(callback, kind) for callback in present)]
        for callback in [*present, *added]:
            if isinstance(callback, (MeaningCheck, RunFolder)):
                callback.before(self.trainer)  # anything is read or written
        return added

    def _check_data(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        ours = isinstance(data, TextDataModule) and type(data).__module__.startswith("lit_spectral.")
        if ours and not isinstance(data, self.data_modules):
            raise InputError(
                f"data: {type(data).__name__} is not for {type(self).__name__}, which takes "
                f"{' or '.join(kind.__name__ for kind in self.data_modules)} and what derives from it; give another "
                "--data, or another --model"
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer over groups of one kind of parameters, and its schedule."""
        groups = parameter_groups(self.model, self._output_layers, self.method.head_lr)
        if not groups:
            raise InputError(f"model.method: {type(self.method).__name__} leaves nothing of this model to train")
        optimizer = _built(self.optimizer, groups)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * group["lr_ratio"]
            if {"fused", "foreach"} <= group.keys() and group["fused"] is None and group["foreach"] is None:
                group["fused"] = True  # one call for all parameters; torch's own choice is a loop on CPUs
        steps = run_steps(self.trainer)
        self._plan(steps)
        scheduler = self._schedule(optimizer, steps)
        check_rates(optimizer, scheduler, steps)
        self._options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        schedule = {name: getattr(self, name) for name in ("lr_scheduler", "warmup_steps", "lr_scheduler_options")}
        anchor = None if self.anchor is None else asdict(self.anchor)
        self._settings = run_settings(self.trainer, self, optimizer, anchor=anchor, **schedule)
        if self._resumed:
            resume.check_optimizer(self._resumed, self._settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Begin at what the method starts from, unless something has been trained or loaded; average that alone."""
        if not self.is_trained:
            begin(self)
        if self.anchor is not None:
            self._anchoring = _anchoring().Anchoring(self, self.anchor)
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
        planned = self._schedule(optimizer, steps)
        resume.put_back(optimizer, self._options, scheduler, planned)
        changed = self._differences + differences(saved, self._settings)
        if changed and self.trainer.is_global_zero:
            log.warning("settings that are not the checkpoint's, and act from here on: %s", "; ".join(changed))
