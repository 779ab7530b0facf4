"""The span of a context that answers a question, or that there is none."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral.callbacks import PredictionWriter
from lit_spectral.datamodules.squad import SQuAD
from lit_spectral.errors import InputError, check_at_least
from lit_spectral.files import write_text
from lit_spectral.methods import Method
from lit_spectral.run_folder import own_folder
from lit_spectral.scoring import squad
from lit_spectral.tasks.base import Task

__all__ = ["QuestionAnswering"]

# What is kept of each window that was read: whether it was, its loss, and its best span.
SEEN, LOSS, SCORE, FIRST, LAST, NULL = range(6)


class QuestionAnswering(Task):
    """Cross-entropy of the answer's first and of its last token, averaged; windows without it point at token 0.

    Batches and windows are those of the data module `SQuAD`. Whole questions are scored, at the end
    of an evaluation: the best span of all windows of a question is its answer unless, in v2.0, the
    null score (start and end logit of token 0, the least of the windows) is above the span's by
    more than `null_threshold`. Of a set that was read in part, the windows that were read count.

    Logged are `loss`, a mean over windows, and in percent `exact_match` and `f1`; for v2.0 also
    `has_answer_exact_match`, `has_answer_f1` and `no_answer_f1` for questions with and without an
    answer, and `best_f1` with `best_f1_threshold`, the `null_threshold` that the official script
    finds best, knowing the answers. `validate`, `test` and `predict` write `predictions_SET.json`,
    and for v2.0 `null_odds_SET.json` (null score less span score), in the official script's form
    into the run's log folder.

    Args:
        backbone: as in `Task`.
        method: as in `Task`.
        max_answer_length: tokens of an answer, at most.
        null_threshold: in logits; higher answers more questions.
        settings: of `Task`: its optimizer, schedule, dtype, …
    """

    data_modules = (SQuAD,)

    def __init__(
        self,
        backbone: str = "microsoft/deberta-v3-base",
        method: Method | None = None,
        max_answer_length: int = 30,
        null_threshold: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, method, **settings)
        check_at_least(1, max_answer_length=max_answer_length)
        if math.isnan(null_threshold):  # an infinite one answers always, or never
            raise InputError("null_threshold is a number, not nan")
        self.max_answer_length = max_answer_length
        self.null_threshold = null_threshold
        self._windows: dict[str, Tensor] = {}

    def load_model(self, folder: str) -> tuple[nn.Module, list[str]]:
        """The encoder with a new head of two outputs a token."""
        from transformers import AutoModelForQuestionAnswering

        return self.load(AutoModelForQuestionAnswering, folder)

    def checkpoint_init(self) -> dict[str, Any]:
        """Arguments to build this task again."""
        own = {"max_answer_length": self.max_answer_length, "null_threshold": self.null_threshold}
        return super().checkpoint_init() | own

    def logged_metrics(self) -> list[str]:
        """Those of training, and of the validation set what the class names."""
        names = ["loss", "exact_match", "f1"]
        if self._data.version_2:
            names += ["has_answer_exact_match", "has_answer_f1", "no_answer_f1", "best_f1", "best_f1_threshold"]
        return [*super().logged_metrics(), *(f"{part}/{name}" for part in self.evaluation_sets() for name in names)]

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Start and end logits, each (windows, length), float32; those of padding are the least number there is."""
        known = ("input_ids", "attention_mask", "token_type_ids")
        outputs = self.model(**{name: batch[name] for name in known if name in batch})
        padding = batch["attention_mask"] == 0
        start, end = (
            # Prompt methods put virtual tokens in front; the last positions are those of the batch.
            logits[:, -padding.shape[1] :].float().masked_fill(padding, torch.finfo(torch.float32).min)
            for logits in (outputs.start_logits, outputs.end_logits)
        )
        return start, end

    def summed_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        """Over the windows (0-d, nats), and their number."""
        start, end = self(batch)
        losses = _losses(start, end, batch)
        return losses.sum(), len(losses)

    def on_validation_epoch_start(self) -> None:
        """Start with no window read."""
        self._start(self.evaluation_sets())

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Note the best span of each window."""
        self._read(batch, self.evaluation_sets()[dataloader_idx])

    def on_validation_epoch_end(self) -> None:
        """Score the questions."""
        self._finish()

    def on_test_epoch_start(self) -> None:
        """Start with no window read."""
        self._start(["test"])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Note the best span of each window."""
        self._read(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Score the questions."""
        self._finish()

    def on_predict_epoch_start(self) -> None:
        """Start with no window read."""
        self._start(["test"])

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[str]:
        """Text of each window's best span; the files written at the end hold one text a question."""
        read = self._read(batch, "test")
        texts: list[str] = self._data.texts("test", batch["window"], read[:, FIRST].long(), read[:, LAST].long())
        return texts

    def on_predict_epoch_end(self) -> None:
        """Write the questions' answers."""
        self._finish()

    @property
    def _data(self) -> Any:
        data = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "question_of"):
            raise InputError("QuestionAnswering reads texts from its data module; give SQuAD, or one like it")
        return data

    def _start(self, names: list[str]) -> None:
        # Every process has a row for every window, so that they can be summed up over processes.
        self._windows = {name: torch.zeros(len(self._data.question_of(name)), 6, device=self.device) for name in names}

    def _read(self, batch: dict[str, Tensor], name: str) -> Tensor:
        """Note what the batch's windows give; (windows, 6) in the order of the constants above."""
        start, end = self(batch)
        score, first, last = squad.best_spans(start, end, batch["context"], self.max_answer_length)
        losses = _losses(start, end, batch) if "start_positions" in batch else torch.zeros_like(score)
        read = torch.stack([torch.ones_like(score), losses, score, first, last, start[:, 0] + end[:, 0]], 1)
        self._windows[name][batch["window"]] = read
        return read

    def _finish(self) -> None:
        for name, windows in self._windows.items():
            # No window is read by two processes.
            whole = self.trainer.strategy.reduce(windows, reduce_op="sum").cpu()
            numbers = whole[:, SEEN].nonzero()[:, 0]
            self._score(name, numbers, whole[numbers])
        self._windows = {}

    def _score(self, name: str, numbers: Tensor, read: Tensor) -> None:
        data = self._data
        best = squad.best_windows(data.question_of(name)[numbers], read[:, SCORE], read[:, NULL])
        chosen = read[best.windows]
        spans = data.texts(name, numbers[best.windows], chosen[:, FIRST].long(), chosen[:, LAST].long())
        differences = (best.null_scores - chosen[:, SCORE]).tolist()
        silent = [data.version_2 and difference > self.null_threshold for difference in differences]
        predictions = ["" if null else text for null, text in zip(silent, spans, strict=True)]
        questions = data.questions(name, best.questions)
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._write(f"predictions_{name}.json", dict(zip(questions["id"], predictions, strict=True)))
            if data.version_2:
                self._write(f"null_odds_{name}.json", dict(zip(questions["id"], differences, strict=True)))
        if self.trainer.predicting:
            self._keep(best.questions, questions["id"], predictions, chosen[:, SCORE], differences)
            return
        answers = questions["answers"]
        found = {"loss": float(read[:, LOSS].mean())} | squad.score(predictions, answers, data.version_2)
        if data.version_2:
            values = [squad.f1(span, accepted, True) for span, accepted in zip(spans, answers, strict=True)]
            best_f1, threshold = squad.best_threshold(values, differences, [bool(accepted) for accepted in answers])
            found |= {"best_f1": best_f1, "best_f1_threshold": threshold}
        for metric, value in found.items():
            self.log(f"{name}/{metric}", value, prog_bar=metric in {"exact_match", "f1"}, sync_dist=True)

    def _keep(self, rows: Tensor, ids: list[str], texts: list[str], scores: Tensor, differences: list[float]) -> None:
        """Hand over what `predict` writes of each question: `id`, `text`, its span's `score`, for v2.0 `null_odds`."""
        said: list[dict[str, Any]] = [
            {"id": key, "text": text, "score": score}
            for key, text, score in zip(ids, texts, scores.tolist(), strict=True)
        ]
        if self._data.version_2:
            said = [each | {"null_odds": odds} for each, odds in zip(said, differences, strict=True)]
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PredictionWriter):
                callback.keep("test", zip(rows.tolist(), said, strict=True))

    def _write(self, file: str, content: dict[str, Any]) -> None:
        folder = own_folder(self.trainer)  # asked for on every process
        if folder is not None and self.trainer.is_global_zero:
            write_text(folder / file, json.dumps(content, ensure_ascii=False, indent=1))


def _losses(start: Tensor, end: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mean of the two cross-entropies of each window, (windows,), in nats."""
    first = F.cross_entropy(start, batch["start_positions"], reduction="none")
    return (first + F.cross_entropy(end, batch["end_positions"], reduction="none")) / 2
