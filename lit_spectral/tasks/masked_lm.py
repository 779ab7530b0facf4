"""Restoring masked tokens: pretraining, and a measure of what an encoder still knows."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral.datamodules.masked_text import MaskedText
from lit_spectral.tasks.base import Task

__all__ = ["MaskedLM"]


class MaskedLM(Task):
    """Cross-entropy over the masked positions; the pretrained head stays frozen unless all is trained.

    Arguments are those of `Task`.
    """

    data_modules = (MaskedText,)

    trains_head = False

    def load_model(self, folder: str) -> tuple[nn.Module, list[str]]:
        """The encoder with its masked-language head."""
        from transformers import AutoModelForMaskedLM

        return self.load(AutoModelForMaskedLM, folder)

    def logged_metrics(self) -> list[str]:
        """Those of training, and loss and accuracy of the validation set."""
        return [*super().logged_metrics(), "val/loss", "val/accuracy"]

    def summed_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Over the masked tokens (0-d, nats), and their number, which may be 0."""
        summed, _, count = self._score(batch)
        return summed, count

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """`val/loss` and `val/accuracy` over masked tokens, each token of the set counted once."""
        summed, right, count = self._score(batch)
        for name, value in (("val/loss", summed / max(count, 1)), ("val/accuracy", right / max(count, 1))):
            self.log(name, value, batch_size=count, prog_bar=True, sync_dist=True)

    def _score(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
        """Summed loss over the masked tokens, how many of them are restored, and their number, which may be 0."""
        labels = batch["labels"]
        masked = labels != -100
        logits = self.model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        # Prompt methods put virtual tokens in front; the last positions are those of the batch.
        logits, wanted = logits[:, -labels.shape[1] :][masked].float(), labels[masked]
        summed = F.cross_entropy(logits, wanted, reduction="sum")
        return summed, (logits.argmax(-1) == wanted).float().sum(), len(wanted)
