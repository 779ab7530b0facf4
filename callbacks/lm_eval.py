"""Tasks of lm-evaluation-harness, while a decoder trains."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from lit_spectral.callbacks.logged_curve import logged_step
from torch import nn

from lit_spectral.errors import InputError, check_at_least, check_positive
from lit_spectral.sharding import is_sharded

if TYPE_CHECKING:  # it is a part of what imports this
    from lit_spectral.evaluation.harness import Tasks

__all__ = ["LMEvalCallback"]


class LMEvalCallback(Callback):
    """Scores the model on harness tasks when training ends, and every few epochs.

    Metrics go to the loggers as `lm_eval/<task>/<metric>` at the current optimizer step, and all
    that the harness reports, with the task's settings, seeds, versions and git state, as one line
    an evaluation to `lm_eval.jsonl` in the log folder. Training goes on as if nothing had happened:
    random states and every module's mode are put back.

    The tasks' data is read before training starts, so that what can't be had stops the run there.
    One process evaluates, in the precision of training, and the others wait for it; a strategy's
    `timeout` must be longer than that takes. Where the backbone is sharded (`fsdp2`), all do the same.

    Args:
        tasks: as in `lit_spectral.evaluation.harness.Tasks`.
        every_n_epochs: epochs between evaluations; 0 for the end of training alone.
        include_path: a folder with YAMLs of tasks.
        limit: rows of a task, or below 1 a fraction of them; None for all.
        num_fewshot: examples before a question; None for what the task says.
        batch_size: requests in a batch.
        gen_kwargs: settings of generation, over the tasks' own.
        metadata: handed to tasks that ask for it, such as `{commonsense: FOLDER}`.
        confirm_run_unsafe_code: whether tasks may run what the model has written.
    """

    def __init__(
        self,
        tasks: list[str],
        every_n_epochs: int = 0,
        include_path: str | None = None,
        limit: float | None = None,
        num_fewshot: int | None = None,
        batch_size: int = 8,
        gen_kwargs: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        confirm_run_unsafe_code: bool = False,
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, every_n_epochs=every_n_epochs, num_fewshot=num_fewshot)
        check_positive(limit=limit)
        self.tasks = tasks
        self.every_n_epochs = every_n_epochs
        self.include_path = include_path
        self.limit = limit
        self.num_fewshot = num_fewshot
        self.batch_size = batch_size
        self.gen_kwargs = gen_kwargs
        self.metadata = metadata
        self.confirm_run_unsafe_code = confirm_run_unsafe_code
        self._loaded: Tasks | None = None
        self._last_step = self._restored = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Read the tasks and their data; InputError when that fails."""
        if stage != "fit":
            return
        from lit_spectral.evaluation.harness import Tasks
        from lit_spectral.tasks import CausalLM

        if not isinstance(pl_module, CausalLM):
            raise InputError(f"LMEvalCallback scores decoders, of CausalLM, not {type(pl_module).__name__}")
        self._last_step = -1
        with isolate_rng():
            self._loaded = Tasks(self.tasks, self.include_path, self.metadata, self.confirm_run_unsafe_code)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what a run that goes on has been scored at."""
        self._last_step, self._restored = self._restored, -1

    @property
    def state_key(self) -> str:
        """Of this one among several."""
        return f"{type(self).__qualname__}{self.tasks, self.every_n_epochs, self.num_fewshot, self.limit}"

    def state_dict(self) -> dict[str, Any]:
        """The step at which it was scored last."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self._restored = state_dict["last_step"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate, if it is time."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate what training has come to, unless that was done at the end of its last epoch."""
        if trainer.global_step != self._last_step:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asked on every process, as it is broadcast
        if trainer.is_global_zero or any(is_sharded(parameter) for parameter in pl_module.parameters()):
            self._score(trainer, pl_module, folder)
        trainer.strategy.barrier("lm_eval")

    def _score(self, trainer: pl.Trainer, pl_module: pl.LightningModule, folder: Path) -> None:
        from lit_spectral.evaluation.harness import as_json, evaluate, figures
        from lit_spectral.evaluation.model import AdaptedLM, identity

        assert self._loaded is not None
        task: Any = pl_module
        about = {**identity(task), "step": trainer.global_step, "seed_everything": os.environ.get("PL_GLOBAL_SEED")}
        start = time.monotonic()
        with isolate_rng(), modes_kept(task), trainer.precision_plugin.forward_context():
            results = evaluate(
                AdaptedLM(task.model, task.backbone, about, batch_size=self.batch_size),
                self._loaded,
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                gen_kwargs=self.gen_kwargs,
                batch_size=self.batch_size,
                device=str(task.device),
                log_samples=False,
                bootstrap_iters=0,  # errors of some metrics are estimated in forked processes
            )
        if not trainer.is_global_zero:
            return
        results["seconds"] = time.monotonic() - start
        metrics = {f"lm_eval/{name}": value for name, value in figures(results).items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=logged_step(trainer))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lm_eval.jsonl").open("a", encoding="utf-8") as file:
            file.write(as_json(results) + "\n")


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every module back into the mode, training or evaluation, that it is in now."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
