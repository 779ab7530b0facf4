"""What of a task lies in a checkpoint: the adapter, how to build the rest again, and how a run goes on."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_spectral.adapters import refuse_folded, trained_state
from lit_spectral.backbones import Loading
from lit_spectral.checkpoint_file import BENEATH, read, saved_by_task, tensor_digests
from lit_spectral.errors import InputError
from lit_spectral.progress import seed_step
from lit_spectral.spectra.linalg import all_finite
from lit_spectral.tasks import rebuild, resume
from lit_spectral.tasks.averaging import put_averages
from lit_spectral.tasks.fit_check import check_checkpoint
from lit_spectral.tasks.meaning import note_loading
from lit_spectral.tasks.saved_weights import complete, keep_trained, plain, put_in_place
from lit_spectral.tasks.settings import given_seed, same_seed
from lit_spectral.tasks.steps import SteppedModule
from lit_spectral.updates.beneath import check_beneath, of_saved, to_saved

if TYPE_CHECKING:
    from typing_extensions import Self

    from lit_spectral.updates import Update

__all__ = ["StoredModule"]


class StoredModule(SteppedModule):
    """An adapted `backbone`, as it is saved and loaded.

    Attributes:
        backbone_digest: that tells backbones apart; empty before there is a model.
        new_weights: names of weights that the backbone's files lack.
        is_trained: whether anything has been trained or loaded.
        beneath: the sum of what the method's `on_top_of` names, once it is known: read, or loaded; None for none.
    """

    backbone: str
    loading: Loading

    def __init__(self) -> None:
        super().__init__()
        self.backbone_digest = ""
        self.new_weights: list[str] = []
        self.is_trained = False
        self.beneath: Update | None = None
        self.register_load_state_dict_post_hook(note_loading)  # type: ignore[no-untyped-call]
        # The frozen backbone isn't in the checkpoint; on_load_checkpoint checks the keys that are.
        self.strict_loading = False
        self._seed = 0  # of the random numbers of all steps
        # Settings of the run and of the checkpoint that it goes on from, and what else differs from that.
        self._settings: dict[str, Any] = {}
        self._resumed: dict[str, Any] | None = None
        self._differences: list[str] = []

    def _start_anew(self) -> None:
        """Forget that an earlier fit went on from a checkpoint."""
        self._resumed, self._settings, self._seed = None, {}, given_seed()

    @property
    def seed_of_steps(self) -> int:
        """On which all random numbers of a run's steps depend; a resumed run has that of its checkpoint."""
        return self._seed

    @property
    def _fits(self) -> bool:
        trainer: Any = self._trainer
        return trainer is not None and bool(trainer.training)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Random numbers of a step are those of its number, seed and process."""
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        if first:
            seed_step(self._seed, self.trainer.global_step, self.trainer.global_rank)
        if self._anchoring is not None:
            self._anchoring.note(batch, self.trainer.global_step, first)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep of the weights that are there, averages perhaps, what is trained, and how to rebuild the rest."""
        if not self.method.trains:
            raise InputError(
                f"checkpoint: {type(self.method).__name__} has trained nothing to keep; export its source instead"
            )
        damaged = next((name for name, tensor in self._trained().items() if not all_finite(tensor)), None)
        if damaged is not None:
            raise InputError(
                f"fit: {damaged} is not finite, so that there is nothing to keep: the run has diverged; give a smaller "
                "learning rate or weight decay"
            )
        put_averages(self.trainer, self, checkpoint)
        keep_trained(checkpoint, self.state_dict(), self._trained())
        if self.beneath is not None:
            checkpoint[BENEATH] = to_saved(self.beneath)
        self._progress.settle(self.trainer, checkpoint["loops"])
        progress = {"seed": self._seed, "skipped_steps": self.skipped_steps}
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
        # Whether to trust its code is for who loads it to say.
        how = {name: getattr(self.loading, name) for name in ("dtype", "revision", "quantization")}
        return {"backbone": self.backbone, **how}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit, or that a fit can't go on from, naming what differs."""
        saved, resumes = saved_by_task(checkpoint), self._fits
        refuse_folded(self.model, "a checkpoint")
        check_beneath(checkpoint.get(BENEATH), self.beneath)
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
            if same_seed(saved["settings"]):
                self._seed = saved["seed"]
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
        task = rebuild.rebuilt(saved, cls, checkpoint_path, given)
        if BENEATH in content:
            task.beneath = of_saved(content[BENEATH], os.fspath(checkpoint_path))
        task.method.load_state_dict(saved["method_state"])  # by which the method may be put on
        task.configure_model()
        task.on_load_checkpoint(content)
        task.load_state_dict(content["state_dict"], strict=False)
        return task.to(map_location or "cpu")
