"""Callbacks that put adapters back into their feasible set after every optimizer step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lit_spectral.adapters import Adapter, FactoredAdapter, adapters
from lit_spectral.adapters.stacking import group_by_shape, singular_values, stack_factors
from lit_spectral.errors import InputError
from lit_spectral.spectra import linalg

__all__ = ["FactorRetraction", "FrobeniusBall", "SigmaClamp", "SpectralBall", "projector"]


class Projection(Callback):
    """Runs `project` on all adapters once when training starts and after every optimizer step.

    It hangs on the optimizers' post-step hook: once a step under gradient accumulation, on every
    rank, before anything validates, logs or saves. Optimizers also call it for steps that a
    gradient scaler skips, so `project` must change nothing the second time. Several act in the order
    of `turn`, wherever the trainer's list has them: a later one must not leave an earlier one's set.
    """

    turn: int

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    @abstractmethod
    def project(self, attached: list[Adapter]) -> None:
        """Put the adapters' tensors into their set, in place."""

    @abstractmethod
    def concerns(self, adapter: Adapter) -> bool:
        """Whether the adapter declares a set that this callback holds."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Project once, then after every step; the first of them for all."""
        present = [callback for callback in trainer.callbacks if isinstance(callback, Projection)]  # type: ignore[attr-defined]
        if min(present, key=lambda callback: callback.turn) is self:
            project_all = projector(present, adapters(pl_module))
            project_all()
            self._handles = [optimizer.register_step_post_hook(project_all) for optimizer in trainer.optimizers]

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


def projector(projections: Iterable[Projection], attached: list[Adapter]) -> Callable[..., None]:
    """What puts the adapters into all their sets, in the projections' turn; an optimizer's post-step hook."""
    in_turn = sorted(projections, key=lambda projection: projection.turn)
    held = [(projection, [a for a in attached if projection.concerns(a)]) for projection in in_turn]

    @torch.no_grad()
    def project_all(*args: Any) -> None:
        for projection, concerned in held:
            if concerned:
                projection.project(concerned)

    return project_all


def _refuse_diverged(parts: Iterable[Tensor | float]) -> None:
    """InputError for factors that no projection brings back: a NaN or an infinity has no nearest point in a set."""
    factors = [part.detach() for part in parts if isinstance(part, Tensor)]
    if factors and not bool(torch.stack(torch._foreach_norm(factors)).isfinite().all()):  # one look at all of them
        raise InputError(
            "fit: a factor of ΔW has left float32's range, so that no bound can hold it: the run has diverged; give a "
            "smaller learning rate or weight decay"
        )


def _confine(attached: Iterable[Adapter]) -> None:
    """Take the adapters' columns out of the subspaces that they are to keep out of, one shape at a time."""
    confined = [item for adapter in attached for item in adapter.confined]
    for indices in group_by_shape(confined):
        linalg.project_out_([confined[i].columns for i in indices], [confined[i].basis for i in indices])


class SigmaClamp(Projection):
    """σ in [0, σ̄], or any other range that an adapter declares of a tensor (FCLoRA eq. 10, HiLoRA eq. 7)."""

    turn = 1

    def concerns(self, adapter: Adapter) -> bool:
        """Whether the adapter has bounded tensors."""
        return bool(adapter.bounded)

    def project(self, attached: list[Adapter]) -> None:
        """Clamp, all tensors at once."""
        bounded = [bound for adapter in attached for bound in adapter.bounded]
        tensors = [bound.tensor for bound in bounded]
        torch._foreach_clamp_min_(tensors, [bound.lower for bound in bounded])
        torch._foreach_clamp_max_(tensors, [bound.upper for bound in bounded])


class FactorRetraction(Projection):
    """Puts factors back into the subspace, or onto the orthonormal columns, that they were declared to be in.

    L ← L − U(UᵀL) and R ← R − (R V)Vᵀ for HiP-LoRA and Proj-LoRA (HiP-LoRA App. A.2); U, V ← the Q of
    their QR decomposition for FCLoRA by Gram–Schmidt (FCLoRA Table 18), or their polar factor for StelLA and EBLoRA. In
    float32, one shape at a time.
    """

    turn = 0

    def concerns(self, adapter: Adapter) -> bool:
        """Whether the adapter declares a subspace, or columns that are to be exactly orthonormal."""
        return bool(adapter.confined) or adapter.retracted

    def project(self, attached: list[Adapter]) -> None:
        """Retract."""
        self._retract(attached)
        # Orthonormal columns made of nearly dependent ones have their rounding grown; a second time it is gone.
        if both := [adapter for adapter in attached if adapter.confined and adapter.retracted]:
            self._retract(both)

    def _retract(self, attached: list[Adapter]) -> None:
        _confine(attached)
        for polar, retract in ((False, linalg.orthonormalise), (True, linalg.polar_factor)):
            concerned = [adapter for adapter in attached if adapter.retracted and adapter.polar == polar]
            tensors = [(tensor,) for adapter in concerned for tensor in adapter.orthonormal]
            _refuse_diverged(tensor for (tensor,) in tensors)
            for indices in group_by_shape(tensors):
                columns = torch.stack([tensors[i][0].detach() for i in indices])
                torch._foreach_copy_([tensors[i][0] for i in indices], list(retract(columns).unbind()))


class SpectralBall(Projection):
    """‖ΔW‖₂ ≤ radius, exactly.

    Where the left factor may take any value, ΔW becomes the nearest matrix in the ball, right factor
    and σ as they are. A clamp on σ bounds ΔW only as far as U and V are orthonormal, which a penalty
    makes them only roughly; this needs no orthonormality. Changes that are differences from a start
    (PiSSA, MiLoRA, SORSA) can't take that value: they are moved back towards their start until they
    are inside.
    """

    turn = 2  # it makes no σ larger, and leaves factors in their subspace

    def concerns(self, adapter: Adapter) -> bool:
        """Whether the adapter declares a radius."""
        return adapter.ball_radius is not None

    def project(self, attached: list[Adapter]) -> None:
        """Contract, adapters of one shape at a time."""
        factored = [adapter for adapter in attached if isinstance(adapter, FactoredAdapter)]
        _refuse_diverged(part for adapter in factored for part in adapter.factors()[:3])
        free = [(factors, a.ball_radius) for a in factored if (factors := a.free_factors()) is not None]
        for indices in group_by_shape([(factors.left, factors.right) for factors, _ in free]):
            lefts = [free[i][0].left for i in indices]
            left, right = stack_factors([free[i][0] for i in indices])
            radius = torch.tensor([free[i][1] for i in indices], device=left.device)
            contracted = linalg.contract_to_spectral_ball(left, right, radius).float()
            # By differences in float64, then cast; where that can't be told from outside, 0 is in the ball.
            lost = linalg.lost_in_rounding(left, right, radius, 1e-15)
            lost |= linalg.lost_in_rounding(contracted, right, radius, 6e-8)
            torch._foreach_copy_(lefts, list(contracted.masked_fill(lost[:, None, None], 0.0).unbind()))
        # What rounding had left outside of a subspace has grown beside the columns that were contracted. Taking it
        # away makes no norm larger; where it is lost in rounding again, two channels may add up.
        _confine(factored)
        kept = [adapter for adapter in factored if adapter.confined or adapter.free_factors() is None]
        _retreat([(adapter, adapter.ball_radius or 0.0) for adapter in kept], lambda values: values[0])


class FrobeniusBall(Projection):
    """‖ΔW‖_F ≤ radius: a bound on how much there is in all, which FCLoRA's App. I sets beside one on every σ.

    ΔW is scaled down to the radius, which gives the nearest matrix in the ball, and stays in every other set that it is
    in. Changes that are differences from a start (PiSSA, MiLoRA, SORSA) are moved back towards it until inside.
    """

    turn = 3

    def concerns(self, adapter: Adapter) -> bool:
        """Whether the adapter declares a radius."""
        return adapter.frobenius_radius is not None

    def project(self, attached: list[Adapter]) -> None:
        """Scale."""
        factored = [adapter for adapter in attached if isinstance(adapter, FactoredAdapter)]
        _refuse_diverged(part for adapter in factored for part in adapter.factors()[:3])
        bounded = [(adapter, adapter.frobenius_radius or 0.0) for adapter in factored]
        # Nearer to the start parts of a difference may cancel no longer, so that its largest singular value grows.
        balls = [(a, a.ball_radius) for a in factored if a.ball_radius is not None and a.free_factors() is None]
        while _retreat(bounded, torch.linalg.vector_norm) and _retreat(balls, lambda values: values[0]):
            pass


def _retreat(attached: list[tuple[FactoredAdapter, float]], norm_of: Callable[[Tensor], Tensor]) -> bool:
    """Scale back by radius/‖ΔW‖ until inside: once is enough but where parts of ΔW cancel; returns whether any moved.

    Args:
        attached: adapters with their radius.
        norm_of: the norm, of singular values (r,), largest first.
    """
    factors = [adapter.factors() for adapter, _ in attached]
    for indices in group_by_shape([(each.left, each.right) for each in factors]):
        left, right = stack_factors([factors[i] for i in indices])
        radii = torch.tensor([attached[i][1] for i in indices], device=left.device)
        lost = linalg.lost_in_rounding(left, right, radii, 6e-8).tolist()
        for index in (i for i, is_lost in zip(indices, lost, strict=True) if is_lost):
            attached[index][0].retreat(0.0)
    longest, moved = 1.0, False
    while attached:
        values = singular_values([adapter.factors() for adapter, _ in attached])
        norms = torch.stack([norm_of(value) for value in values]).tolist()
        outside = []
        for (adapter, radius), norm in zip(attached, norms, strict=True):
            if norm > radius * (1 + 1e-6):
                adapter.retreat(min(radius / norm, longest))
                outside.append((adapter, radius))
        moved |= bool(outside)
        attached, longest = outside, 0.99  # from here on in steps that end
    return moved
