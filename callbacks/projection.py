"""Callbacks that put adapters back into their feasible set after every optimizer step."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lit_spectral import linalg
from lit_spectral.adapters import Adapter, adapters

__all__ = ["SigmaClamp", "SpectralBall"]


class Projection(Callback):
    """Runs `project` on all adapters once when training starts and after every optimizer step.

    It hangs on the optimizers' post-step hook: once a step under gradient accumulation, on every
    rank, before anything validates, logs or saves. Optimizers also call it for steps that a
    gradient scaler skips, so `project` must change nothing the second time.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    @abstractmethod
    def project(self, attached: list[Adapter]) -> None:
        """Put the adapters' tensors into their set, in place."""

    @abstractmethod
    def concerns(self, adapter: Adapter) -> bool:
        """Whether the adapter declares a set that this callback holds."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Project once, then after every step."""
        attached = [adapter for adapter in adapters(pl_module) if self.concerns(adapter)]
        if not attached:
            return

        def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            with torch.no_grad():
                self.project(attached)

        with torch.no_grad():
            self.project(attached)
        self._handles = [optimizer.register_step_post_hook(after_step) for optimizer in trainer.optimizers]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of the optimizers."""
        self._remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let go of the optimizers."""
        self._remove()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the optimizers."""
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class SigmaClamp(Projection):
    """0 ≤ σ ≤ σ̄ for every tensor that an adapter declares bounded (FCLoRA eq. 10, HiLoRA eq. 7)."""

    def concerns(self, adapter: Adapter) -> bool:
        """Whether the adapter has bounded tensors."""
        return bool(adapter.bounded)

    def project(self, attached: list[Adapter]) -> None:
        """Clamp, all tensors at once."""
        bounded = [bound for adapter in attached for bound in adapter.bounded]
        tensors = [bound.tensor for bound in bounded]
        torch._foreach_clamp_min_(tensors, 0.0)
        torch._foreach_clamp_max_(tensors, [bound.upper for bound in bounded])


class SpectralBall(Projection):
    """‖ΔW‖₂ ≤ radius, exactly: the nearest ΔW in the ball, by contracting the left factor.

    A clamp on σ bounds ΔW only as far as U and V are orthonormal, which a penalty makes them only
    roughly; this bound needs no orthonormality. Right factor and σ are left as they are.
    """

    def concerns(self, adapter: Adapter) -> bool:
        """Whether the adapter declares a radius."""
        return adapter.ball_radius is not None

    def project(self, attached: list[Adapter]) -> None:
        """Contract, adapters of one shape at a time."""
        by_shape: dict[tuple[torch.Size, torch.Size], list[Adapter]] = defaultdict(list)
        for adapter in attached:
            factors = adapter.factors()
            if factors is not None:
                by_shape[factors.left.shape, factors.right.shape].append(adapter)
        for group in by_shape.values():
            left, right = stack_factors(group)
            radius = torch.tensor([adapter.ball_radius for adapter in group], device=left.device)
            contraction = linalg.contract_to_spectral_ball(left, right, radius)
            contracted = (left.double() @ contraction).float()
            torch._foreach_copy_([adapter.factors().left for adapter in group], list(contracted.unbind()))  # type: ignore[union-attr]


def stack_factors(group: list[Adapter]) -> tuple[Tensor, Tensor]:
    """(n, out, r) and (n, r, in) of adapters of one shape, with the scale on the right factor."""
    lefts, rights = [], []
    for adapter in group:
        left, scale, right = adapter.factors()  # type: ignore[misc]
        lefts.append(left.detach())
        rights.append(right.detach() * (scale.detach().unsqueeze(-1) if isinstance(scale, Tensor) else scale))
    return torch.stack(lefts), torch.stack(rights)
