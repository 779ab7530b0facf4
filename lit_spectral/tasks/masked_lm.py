"""Restoring masked tokens: pretraining, and a measure of what an encoder still knows."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral import backbones
from lit_spectral.tasks.base import Task

__all__ = ["MaskedLM"]


class MaskedLM(Task):
    """Cross-entropy over the masked positions; the pretrained head stays frozen unless all is trained.

    Arguments are those of `Task`.
    """

    trains_head = False

    def load_model(self, folder: str) -> tuple[nn.Module, list[str]]:
        """The encoder with its masked-language head."""
        from transformers import AutoModelForMaskedLM

        return backbones.load_model(AutoModelForMaskedLM, folder)

    def logged_metrics(self) -> list[str]:
        """Those of training, and loss and accuracy of the validation set."""
        return [*super().logged_metrics(), "val/loss", "val/accuracy"]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over the masked tokens of the batch."""
        loss, _, _ = self._score(batch)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """`val/loss` and `val/accuracy` over masked tokens, each token of the set counted once."""
        loss, accuracy, count = self._score(batch)
        for name, value in (("val/loss", loss), ("val/accuracy", accuracy)):
            self.log(name, value, batch_size=count, prog_bar=True, sync_dist=True)

    def _score(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
        labels = batch["labels"]
        masked = labels != -100
        logits = self.model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        # Prompt methods put virtual tokens in front; the last positions are those of the batch.
        logits, wanted = logits[:, -labels.shape[1] :][masked].float(), labels[masked]
        count = max(len(wanted), 1)  # a short batch may have nothing masked
        loss = F.cross_entropy(logits, wanted, reduction="sum") / count
        return loss, (logits.argmax(-1) == wanted).float().sum() / count, count
