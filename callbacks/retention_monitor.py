"""What the backbone knew and the model still knows, while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from lit_spectral.callbacks.logged_curve import logged_step

from lit_spectral.errors import check_at_least

if TYPE_CHECKING:  # it is made of what imports this
    from lit_spectral.retention import Retention

__all__ = ["RetentionMonitor"]


class RetentionMonitor(Callback):
    """Logs `retention/<corpus>/<measure>` and `retention/sts/<measure>` at the start and end of training, and between.

    Measures are those of `lit_spectral.retention.Retention.measure`, of the model and, under
    `base_…`, of its backbone, in the precision of training. Every process measures all of the
    texts, so that none waits for another. Training goes on as if nothing had happened.

    Args:
        corpora: from a name to a text, or a list of texts: files, folders, or corpora by name; of a decoder also
            `prompts`, those of the data that it is validated on.
        sts: sentence pairs in STS-B's form, for encoders.
        every_n_epochs: epochs between measurements; 0 for none at their ends.
        every_n_steps: optimizer steps between measurements; 0 for none between epochs.
        limit: windows, or lines, of each corpus; None for all.
        max_length: tokens of a window, at most of a line or sentence.
        batch_size: windows, lines or sentences at a time.
        fit_head: a text on which to fit a masked-language head for an encoder that has none.
    """

    def __init__(
        self,
        corpora: dict[str, str] | list[str] | None = None,
        sts: str | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int = 0,
        limit: int | None = 256,
        max_length: int = 256,
        batch_size: int = 8,
        fit_head: str | None = None,
    ) -> None:
        check_at_least(0, every_n_epochs=every_n_epochs, every_n_steps=every_n_steps)
        self.corpora = corpora
        self.sts = sts
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.limit = limit
        self.max_length = max_length
        self.batch_size = batch_size
        self.fit_head = fit_head
        self._retention: Retention | None = None
        self._last_step = -1
        self._restored: dict[str, Any] = {}
        self.latest: dict[str, float] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the texts; InputError when that fails."""
        self._last_step, self.latest = -1, {}  # not those of an earlier fit
        self._retention = self.prepared(pl_module)

    def prepared(self, task: Any) -> Retention:
        """What measures a task on these texts, once they have been read; InputError when that fails."""
        from lit_spectral.retention import Retention

        options = (self.limit, self.max_length, self.batch_size, self.fit_head)
        retention = Retention(self.corpora or (), self.sts, *options)
        with isolate_rng():
            retention.prepare(task)
        return retention

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure where it starts from, unless that was the last thing before its checkpoint."""
        if self._restored.get("last_step") == trainer.global_step:
            self._last_step, self.latest = self._restored["last_step"], self._restored["latest"]
        self._restored = {}
        self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, if it is time."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, if it is time."""
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module)

    @property
    def state_key(self) -> str:
        """Of this one among several."""
        return f"{type(self).__qualname__}{self.corpora, self.sts, self.every_n_epochs, self.every_n_steps}"

    def state_dict(self) -> dict[str, Any]:
        """What was measured last, and when."""
        return {"last_step": self._last_step, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self._restored = state_dict

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what training has come to."""
        self._measure(trainer, pl_module)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self._last_step:  # accumulated batches, or the end of an epoch and of training
            return
        self._last_step = trainer.global_step
        assert self._retention is not None
        with isolate_rng(), trainer.precision_plugin.forward_context():
            self.latest = self._retention.measure(pl_module)  # type: ignore[arg-type]
        for logger in trainer.loggers:
            metrics = {f"retention/{name}": value for name, value in self.latest.items()}
            logger.log_metrics(metrics, step=logged_step(trainer))
