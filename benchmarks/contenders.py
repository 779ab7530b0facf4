"""What takes turns on one backbone: a training step of each of our methods, of peft's, and of no adapter at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lit_spectral.callbacks import FactorRetraction, SigmaClamp, SpectralBall, SpectralMonitor
from lit_spectral.callbacks.projection import projector
from torch import Tensor, nn

from lit_spectral.adapters import adapters, find_targets, named_changes
from lit_spectral.methods import FCLoRA, HiPLoRA, HiRA, LoRA, Method, MiLoRA, PiSSA
from lit_spectral.quantization import compute_with_values
from lit_spectral.tasks.penalties import add_budget_gradients, budget_penalty, pull_to_orthogonality

__all__ = ["CONTENDERS", "Contender", "copied"]

LR = 1e-4
Hook = Callable[[], Any]


def _nothing() -> None:
    pass


@dataclass
class Contender:
    """An adapted model with its optimizer, and what its method does before and after the optimizer's step."""

    model: nn.Module
    batch: dict[str, Any]
    optimizer: torch.optim.Optimizer | None
    before_step: Hook = _nothing
    after_step: Hook = _nothing
    watch: Hook = _nothing
    watched: bool = False

    def loss(self) -> Tensor:
        """Of the batch, with its graph."""
        loss: Tensor = self.model(**self.batch).loss
        return loss

    def step(self) -> None:
        """Forward, backward, clipping, AdamW, and whatever else the method asks for."""
        self.loss().backward()
        if self.optimizer is not None:
            torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], 1.0)
            self.before_step()
            self.optimizer.step()
            self.after_step()
            if self.watched:
                self.watch()
            self.optimizer.zero_grad()

    @torch.no_grad()
    def infer(self) -> None:
        """A forward pass of the unmerged model, in evaluation mode."""
        self.model.eval()
        self.model(**self.batch)
        self.model.train()


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    # Fused for all: torch's default is a loop over parameters on a CPU, and has nothing to do with the method.
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0, fused=True)


def copied(model: nn.Module, weights: bool = False) -> nn.Module:
    """A copy whose modules are its own and whose weights are the same memory, or copied too."""
    return copy.deepcopy(model, {} if weights else {id(p): p for p in [*model.parameters(), *model.buffers()]})


def floor(model: nn.Module, batch: dict[str, Any]) -> Contender:
    """Forward and backward through the frozen backbone, down to its embeddings: nobody can be faster."""
    model = copied(model)

    def start(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.requires_grad_()

    model.get_input_embeddings().register_forward_hook(start)  # type: ignore[operator]
    return Contender(model, batch, None)


def ours(method: Method, monitored: bool = True) -> Callable[[nn.Module, dict[str, Any]], Contender]:
    """A step as `Task` takes it: penalties, projections after the step, and the monitor of every layer at each step."""

    def make(model: nn.Module, batch: dict[str, Any]) -> Contender:
        model = copied(model)
        compute_with_values(model)
        method.apply(model, model.base_model)  # type: ignore[arg-type]
        attached = adapters(model)
        penalised = [adapter for adapter in attached if adapter.penalty_weight > 0]
        budgets = [adapter for adapter in attached if adapter.budget is not None]

        def before_step() -> None:
            if penalised:
                pull_to_orthogonality(penalised, LR)
            if budgets:
                budget_penalty(budgets)
                add_budget_gradients(budgets)

        project = projector([SigmaClamp(), FactorRetraction(), SpectralBall()], attached)
        monitor = SpectralMonitor()
        monitor.watch(named_changes(model))
        return Contender(model, batch, _optimizer(model), before_step, project, monitor.measure, monitored)

    return make


def peft(kind: str, share: bool = True, autocast_adapter_dtype: bool = True, **fields: Any) -> Any:
    """A method of peft on our default targets, as its own documentation has it used."""

    def make(model: nn.Module, batch: dict[str, Any]) -> Contender:
        import peft as library

        # Some of its initialisations write to the backbone.
        model = copied(model, weights=not share)
        wanted = {id(layer) for layer in find_targets(model.base_model, None).values()}  # type: ignore[arg-type]
        names = [name for name, module in model.named_modules() if id(module) in wanted]
        config = getattr(library, kind)(target_modules=names, **fields)
        changed: Any = library.get_peft_model(model, config, autocast_adapter_dtype=autocast_adapter_dtype)
        after = _nothing
        if kind == "AdaLoraConfig":
            steps = iter(range(1, 10**9))

            def after() -> None:
                changed.base_model.update_and_allocate(next(steps))

        return Contender(changed, batch, _optimizer(changed), after_step=after)

    return make


ADALORA = {"init_r": 12, "target_r": 8, "tinit": 10, "tfinal": 10, "total_step": 10**6}
CONTENDERS: dict[str, Callable[[nn.Module, dict[str, Any]], Contender]] = {
    "no adapter": floor,
    "peft LoRA": peft("LoraConfig", r=8, lora_alpha=8),
    "peft LoRA, fastest": peft("LoraConfig", r=8, lora_alpha=8, autocast_adapter_dtype=False),
    "LoRA": ours(LoRA(rank=8), monitored=False),
    "peft AdaLoRA": peft("AdaLoraConfig", **ADALORA),
    "FCLoRA": ours(FCLoRA(rank=8)),
    "FCLoRA, ball": ours(FCLoRA(rank=8, ball="q2")),
    "peft LoRA, r = 16": peft("LoraConfig", r=16, lora_alpha=16),
    "HiP-LoRA": ours(HiPLoRA(rank=16, principal_rank=32)),
    "peft PiSSA": peft("LoraConfig", share=False, r=8, lora_alpha=8, init_lora_weights="pissa_niter_4"),
    "PiSSA": ours(PiSSA(rank=8)),
    "MiLoRA": ours(MiLoRA(rank=8)),
    "peft HiRA": peft("HiraConfig", r=8),
    "HiRA": ours(HiRA(rank=8), monitored=False),
}
