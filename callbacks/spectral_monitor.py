"""The singular values of every change, while it trains."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lit_spectral.callbacks.logged_curve import logged_step
from torch import Tensor

from lit_spectral.adapters import Change, Factors, named_changes
from lit_spectral.adapters.stacking import grams, principal_shares, singular_values, spectral_norms
from lit_spectral.errors import check_at_least
from lit_spectral.spectra import linalg

__all__ = ["SpectralMonitor"]

log = logging.getLogger(__name__)

# Entries of weights whose changes are followed by power iterations in one step: a few milliseconds.
ENTRIES_A_STEP = 2**20


class SpectralMonitor(Callback):
    """Logs ‖ΔW‖₂ of every adapted layer, how close the layers are to their bound, and how principal ΔW is.

    Tags: `spectral_norm/<module path>`, `spectral_norm/max`, `spectral_norm/mean`,
    `spectral_norm/fraction_at_bound` (of the bounded singular values), `orthogonality_error/max`,
    and at the end of an epoch histograms `singular_values/<module path>`. Where the method knows W₀'s k leading
    singular vectors anyway (HiP-LoRA, Proj-LoRA, FCLoRA with `principal_rank`) also `principal_share/<module path>`
    and `principal_share/max`: ρ_k = ‖U_kᵀ ΔW V_k‖_F² / ‖ΔW‖_F², 0 to 1, from factors; not while ΔW is 0.

    For low-rank changes the values come from the factors and are exact; where a change has none (HiRA, MoRA, full
    fine-tuning, layers of peft), it is followed by warm-started power iterations on its products with vectors, an
    estimate from below under `spectral_norm_estimate/`. These read whole weights: layers take turns, as many a step as
    hold a million weights.

    Values stay on the device and are written in batches, so that recording every step does not
    make the device wait.

    Args:
        every_n_steps: optimizer steps between recordings; 0 switches the monitor off.
        flush_every_n_steps: recordings between writes to the loggers.
    """

    def __init__(self, every_n_steps: int = 1, flush_every_n_steps: int = 50) -> None:
        check_at_least(0, every_n_steps=every_n_steps)
        check_at_least(1, flush_every_n_steps=flush_every_n_steps)
        self.every_n_steps = every_n_steps
        self.flush_every_n_steps = flush_every_n_steps
        self._recorded: list[tuple[int, Tensor]] = []
        self._last_step = -1
        self._changes: dict[str, Change] = {}
        self._exact = True
        self._placed: list[str] = []  # those whose principal basis is known
        self._vectors: dict[str, Tensor] = {}
        self._estimates: dict[str, Tensor] = {}
        self._turns: Iterator[str] = iter(())
        self._restored: dict[str, Any] = {}
        self.latest_max: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the adapters and put all layers' growth in one panel of TensorBoard."""
        self.watch(named_changes(pl_module.model))  # type: ignore[arg-type]
        self._go_on()
        self._last_step = trainer.global_step
        if not self.every_n_steps:
            return
        if not self._changes:
            log.info("SpectralMonitor: no map has a ΔW here, and nothing is recorded")
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                panel = {"largest singular value": ["Multiline", [f"{self._prefix}/.*"]]}
                bounded = {"largest and mean": ["Multiline", [f"{self._prefix}/max", f"{self._prefix}/mean"]]}
                logger.experiment.add_custom_scalars({"growth of ΔW": panel | bounded})

    def watch(self, changes: dict[str, Change]) -> None:
        """Measure these changes, by their paths, from now on."""
        self._changes = changes
        self._exact = all(change.factors() is not None for change in changes.values())
        self._placed = [name for name, change in changes.items() if change.principal_basis is not None]
        self._vectors, self._estimates, self.latest_max = {}, {}, None
        self._turns = itertools.cycle(changes)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record once an optimizer step."""
        step = trainer.global_step
        if not self._changes or not self.every_n_steps or step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        self._recorded.append((logged_step(trainer), self.measure()))
        if len(self._recorded) >= self.flush_every_n_steps or self.latest_max is None:  # show the first at once
            self._flush(trainer)
        self._show(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write before validating, so that a crash there loses nothing, and show what it is by now."""
        self._flush(trainer)
        if not trainer.sanity_checking:
            self._show(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, and add histograms of all singular values."""
        self._flush(trainer)
        if not self.every_n_steps or not self._exact:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                for name, values in zip(self._changes, singular_values(self._factors()), strict=True):
                    if not values.amax() < 1e30:  # a run that has diverged, which the next step finds out
                        continue
                    logger.experiment.add_histogram(f"singular_values/{name}", values, logged_step(trainer))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write before a checkpoint is, from which a run goes on behind what was recorded."""
        self._flush(trainer)

    @property
    def state_key(self) -> str:
        """Of this one among several."""
        return f"{type(self).__qualname__}{self.every_n_steps, self.flush_every_n_steps}"

    def state_dict(self) -> dict[str, Any]:
        """Where power iterations are: nothing where all norms are exact."""
        if not self._vectors:
            return {}
        turn = next(self._turns)
        self._turns = self._turns_from(turn)
        return {"vectors": dict(self._vectors), "estimates": dict(self._estimates), "turn": turn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self._restored = state_dict

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is left."""
        self._flush(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write what was recorded until the interruption."""
        self._flush(trainer)

    def _go_on(self) -> None:
        if self._restored and self._changes.keys() == self._restored["vectors"].keys():
            for name, change in self._changes.items():
                self._vectors[name] = self._restored["vectors"][name].to(change.device)
                self._estimates[name] = self._restored["estimates"][name].to(change.device)
            self._turns = self._turns_from(self._restored["turn"])
        self._restored = {}

    def _turns_from(self, name: str) -> Iterator[str]:
        names = list(self._changes)
        return itertools.islice(itertools.cycle(names), names.index(name), None)

    @property
    def _prefix(self) -> str:
        return "spectral_norm" if self._exact else "spectral_norm_estimate"

    def _factors(self) -> list[Factors]:
        return [factors for change in self._changes.values() if (factors := change.factors()) is not None]

    @torch.no_grad()
    def measure(self) -> Tensor:
        """Norms of all layers, fraction at the bound, orthogonality error, principal shares; on the device, float32."""
        changes = list(self._changes.values())
        known: dict[Any, Tensor] = {}  # FCLoRA's factors are also what should be orthonormal
        norms = spectral_norms(changes, known) if self._exact else self._estimated_norms()
        found = [norms.float(), fraction_at_bound(changes, norms), orthogonality_error(changes, known)]
        if self._placed:
            found.append(principal_shares([self._changes[name] for name in self._placed]))
        return torch.cat(found)

    def _estimated_norms(self) -> Tensor:
        """Those of the layers whose turn it is anew, the others' as they were."""
        entries = 0
        for _ in self._changes:
            name = next(self._turns)
            self._estimates[name] = self._power_step(name, self._changes[name])
            entries += self._changes[name].in_features * self._changes[name].out_features
            if entries >= ENTRIES_A_STEP and len(self._estimates) == len(self._changes):
                break
        return torch.stack([self._estimates[name] for name in self._changes])

    def _power_step(self, name: str, change: Change) -> Tensor:
        vector = self._vectors.get(name)
        if vector is None:
            generator = torch.Generator("cpu").manual_seed(0)
            vector = torch.randn(change.in_features, generator=generator, device="cpu").to(change.device)
        norm, self._vectors[name] = linalg.spectral_norm_step(
            change.times, change.transposed_times, vector / vector.norm()
        )
        return norm

    def _show(self, pl_module: pl.LightningModule) -> None:
        if self.latest_max is not None:
            pl_module.log("sigma_max", self.latest_max, prog_bar=True, logger=False)

    def _flush(self, trainer: pl.Trainer) -> None:
        if not self._recorded:
            return
        steps = [step for step, _ in self._recorded]
        rows = torch.stack([row for _, row in self._recorded]).cpu().tolist()
        self._recorded.clear()
        count = len(self._changes)
        for step, row in zip(steps, rows, strict=True):
            norms, (at_bound, error, *shares) = row[:count], row[count:]
            self.latest_max = max(norms)
            metrics = {f"{self._prefix}/{name}": norm for name, norm in zip(self._changes, norms, strict=True)}
            metrics[f"{self._prefix}/max"] = self.latest_max
            metrics[f"{self._prefix}/mean"] = sum(norms) / len(norms)
            # Not a number where nothing is bounded, or nothing is meant to be orthonormal.
            metrics |= {"spectral_norm/fraction_at_bound": at_bound} if at_bound == at_bound else {}
            metrics |= {"orthogonality_error/max": error} if error == error else {}
            placed = {name: share for name, share in zip(self._placed, shares, strict=True) if share == share}
            metrics |= {f"principal_share/{name}": share for name, share in placed.items()}
            metrics |= {"principal_share/max": max(placed.values())} if placed else {}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=step)


def fraction_at_bound(changes: Sequence[Change], norms: Tensor) -> Tensor:
    """Share of what is bounded (entries of σ, or norms in a ball) that is at its bound, shape (1,).

    NaN when nothing is bounded. A norm counts from 1e-4 below its radius, which is its rounding.
    """
    bounded = [bound for change in changes for bound in change.bounded]
    radii = [change.ball_radius or torch.inf for change in changes]
    shares = []
    if bounded:
        # A range around 0 is reached at either end; σ = 0 is where σ starts, not a bound it grew to.
        sizes = torch._foreach_abs([bound.tensor for bound in bounded])
        torch._foreach_div_(sizes, [bound.upper for bound in bounded])
        shares.append((torch.cat(sizes) >= 1).float())
    if any(radius < torch.inf for radius in radii):
        inside = [norm / radius for norm, radius in zip(norms.unbind(), radii, strict=True) if radius < torch.inf]
        shares.append((torch.stack(inside) >= 1 - 1e-4).float())
    if not shares:
        return torch.full((1,), torch.nan, device=norms.device)
    return torch.cat(shares).mean(0, keepdim=True)


def orthogonality_error(changes: Sequence[Change], known: dict[Any, Tensor]) -> Tensor:
    """Largest ‖XᵀX − I‖_F over the tensors meant to be orthonormal, shape (1,); NaN without any."""
    by_rank: dict[int, list[Tensor]] = {}
    for tensor in (tensor for change in changes for tensor in change.orthonormal):
        by_rank.setdefault(tensor.shape[1], []).append(tensor)
    if not by_rank:
        return torch.full((1,), torch.nan, device=changes[0].device)
    off = [grams(tensors, known) - torch.eye(rank, device=tensors[0].device) for rank, tensors in by_rank.items()]
    return torch.cat([torch.linalg.matrix_norm(each) for each in off]).amax(0, keepdim=True).float()
