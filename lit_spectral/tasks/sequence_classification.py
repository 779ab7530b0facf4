"""One label, or one number, for a sentence or a pair of sentences."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral import backbones
from lit_spectral.datamodules.sentences import SentenceDataModule
from lit_spectral.errors import InputError, check_at_least
from lit_spectral.methods import Given, Method
from lit_spectral.tasks.base import Task
from lit_spectral.tasks.metrics import build_metrics

__all__ = ["SequenceClassification"]


class SequenceClassification(Task):
    """Cross-entropy over classes, or squared error when there is one output.

    Args:
        backbone: as in `Task`.
        method: as in `Task`.
        num_labels: classes; 1 for regression. None takes the data module's.
        metrics: names from `lit_spectral.tasks.metrics`. None takes the data module's.
        label_names: of the classes by their numbers. None takes the checkpoint's, else the data
            module's, which numbers its labels by them; none where labels have no names.
        settings: of `Task`: its optimizer, schedule, dtype, …
    """

    data_modules = (SentenceDataModule,)

    def __init__(
        self,
        backbone: str = "roberta-base",
        method: Method | None = None,
        num_labels: int | None = None,
        metrics: list[str] | None = None,
        label_names: list[str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, method, **settings)
        check_at_least(1, num_labels=num_labels)
        self.num_labels = num_labels
        self.label_names = self._given_names = label_names
        self.metric_names = metrics
        self.metrics = nn.ModuleDict()

    def load_model(self, folder: str) -> tuple[nn.Module, list[str]]:
        """The encoder with a new head of `num_labels` outputs."""
        from transformers import AutoModelForSequenceClassification

        if self.num_labels is None:
            self.num_labels = self._from_data("num_labels")
        loaded = self.load(AutoModelForSequenceClassification, folder, num_labels=self.num_labels)
        if self.loading.weights:  # else nothing is padded
            backbones.tell_padding(loaded[0], backbones.load_tokenizer(folder, loading=self.loading))
        if self.label_names is None:
            names = getattr(self._data(), "label_names", None)
            self.label_names = names if names is not None and len(names) == self.num_labels else None
        elif len(self.label_names) != self.num_labels:
            raise InputError(f"label_names: {len(self.label_names)} names for {self.num_labels} classes")
        self._name_classes(loaded[0].config)
        return loaded

    def setup(self, stage: str) -> None:
        """Make one set of metrics for each evaluation set."""
        known = getattr(self._data(), "num_labels", None)
        if self.num_labels is None:
            self.num_labels = self._from_data("num_labels")
        elif known is not None and known != self.num_labels:
            raise InputError(f"model.num_labels: {self.num_labels}, and the data have {known} classes; leave it out")
        if self.metric_names is None:
            self.metric_names = list(self._from_data("metrics"))
        for name in self.evaluation_sets():
            self.metrics[name] = build_metrics(self.metric_names, self.num_labels)

    def checkpoint_init(self) -> dict[str, Any]:
        """Arguments to build this task again."""
        own = {"num_labels": self.num_labels, "metrics": self.metric_names, "label_names": self.label_names}
        return super().checkpoint_init() | own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in `Task`; and its names of the classes act from now on, in the data module too."""
        super().on_load_checkpoint(checkpoint)
        self._take_names(checkpoint["lit_spectral"]["init"].get("label_names"))

    def _adapt(self) -> None:
        super()._adapt()
        if isinstance(self.method, Given):
            self._take_names(self.method.class_names)

    def _take_names(self, names: list[str] | None) -> None:
        """Those by which what was trained numbers the classes; None where it names none."""
        if names is None:
            return
        if self._given_names not in (None, names):
            raise InputError(
                f"the adapter's classes are {', '.join(names)}, in this order; leave out label_names, or give these"
            )
        self.label_names = names
        self._name_classes(self.model.config)
        if hasattr(self._data(), "use_label_names"):
            self._data().use_label_names(names)

    def _name_classes(self, config: Any) -> None:
        if self.label_names is not None:
            config.id2label = dict(enumerate(self.label_names))
            config.label2id = {name: number for number, name in config.id2label.items()}

    def logged_metrics(self) -> list[str]:
        """Those of training, and of each validation set the loss and the metrics."""
        names = ["loss", *(self.metric_names or [])]
        return [*super().logged_metrics(), *(f"{part}/{name}" for part in self.evaluation_sets() for name in names)]

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits (batch, num_labels), float32, of a batch of token ids and their masks."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits: Tensor = self.model(**inputs).logits
        return logits.float()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed over the batch."""
        if self.num_labels == 1:
            return F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
        return F.cross_entropy(logits, labels, reduction="sum")

    def summed_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Over the rows (0-d), and their number."""
        return self.loss(self(batch), batch["labels"]), len(batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and metrics on the sets that the data module names (`val`, for MNLI `val_mismatched` too)."""
        self._evaluate(batch, self.evaluation_sets()[dataloader_idx])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Loss and metrics on the test set."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Class of each row, or the number itself in regression, shape (batch,).

        `predict` writes it as `label`, by its word where the classes have names, with `scores`, the
        classes' probabilities.
        """
        logits = self(batch)
        found = self._predictions(logits)
        self.predicted = [{"label": label} for label in found.tolist()]
        if self.num_labels != 1:
            names = getattr(self, "label_names", None)
            for said, scores in zip(self.predicted, logits.double().softmax(-1).tolist(), strict=True):
                said |= {"label": names[said["label"]] if names else said["label"], "scores": scores}
        return found

    def _evaluate(self, batch: dict[str, Tensor], name: str) -> None:
        logits, labels = self(batch), batch["labels"]
        options: dict[str, Any] = {"batch_size": len(labels), "add_dataloader_idx": False, "on_epoch": True}
        self.log(f"{name}/loss", self.loss(logits, labels) / len(labels), sync_dist=True, **options)
        predictions = self._predictions(logits)
        for metric_name, metric in self.metrics[name].items():  # type: ignore[operator]
            metric.update(predictions, labels)
            # What Lightning itself finds, it keeps after a fit that failed, while `setup` makes others.
            place = f"metrics.{name}.{metric_name}"
            self.log(f"{name}/{metric_name}", metric, metric_attribute=place, prog_bar=True, **options)

    def _predictions(self, logits: Tensor) -> Tensor:
        return logits.squeeze(-1) if self.num_labels == 1 else logits.argmax(-1)

    def _data(self) -> Any:
        return getattr(self._trainer, "datamodule", None)

    def _from_data(self, attribute: str) -> Any:
        data = self._data()
        if not hasattr(data, attribute):
            raise InputError(f"{type(self).__name__}: {attribute} is not given, and the data module has none")
        return getattr(data, attribute)
