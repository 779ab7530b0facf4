"""The next token of a text, or of an answer to a prompt."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral.datamodules.prompted import PromptedText
from lit_spectral.datamodules.text_windows import TextWindows
from lit_spectral.errors import InputError
from lit_spectral.files import write_text
from lit_spectral.generation import continue_batch
from lit_spectral.methods import Method
from lit_spectral.run_folder import own_folder
from lit_spectral.tasks.base import Task
from lit_spectral.tasks.packing_check import check_packing

__all__ = ["CausalLM", "scored_logits"]


class CausalLM(Task):
    """Cross-entropy of the next token over the scored positions; the head stays frozen unless all is trained.

    A batch holds `input_ids` and `attention_mask` (rows, length), padded on the right, and `labels`
    of that shape: the token itself where it is scored, -100 elsewhere (prompt, padding). A row's
    first token has nothing before it and is never scored. Packed rows hold `position_ids` in place of
    the mask (`lit_spectral.datamodules.packing`).

    Test sets of a data module with `score_answers` (`AnsweredText`) are answered by generation:
    their batches hold prompts, padded on the left, and gold answers.

    Args:
        backbone: as in `Task`, of a decoder.
        method: as in `Task`.
        settings: of `Task`: its optimizer, schedule, dtype, …
    """

    data_modules = (PromptedText, TextWindows)

    trains_head = False

    def __init__(
        self,
        backbone: str = "HuggingFaceTB/SmolLM2-135M",
        method: Method | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(backbone, method, **settings)
        self._totals: dict[str, Tensor] = {}
        self._answers: dict[str, list[dict[str, Any]]] = {}

    def load_model(self, folder: str) -> tuple[nn.Module, list[str]]:
        """The decoder with its language-model head.

        Raises:
            InputError: an encoder, whose tokens see those that they are to predict, or files without the head.
        """
        from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModelForCausalLM

        model, missing = self.load(AutoModelForCausalLM, folder)
        config: Any = model.config
        if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_decoder:
            raise InputError(
                f"backbone: {folder} is an encoder ({config.model_type}), whose tokens see the ones they are "
                "to predict; CausalLM needs a decoder, such as Llama, Qwen or GPT-2"
            )
        if missing:
            raise InputError(f"backbone: the files of {folder} hold no language-model head ({', '.join(missing)})")
        return model, []

    def logged_metrics(self) -> list[str]:
        """Those of training, and of each validation set loss and perplexity."""
        names = ("loss", "perplexity")
        return [*super().logged_metrics(), *(f"{part}/{name}" for part in self.evaluation_sets() for name in names)]

    def on_fit_start(self) -> None:
        """Refuse packed rows where the backbone would not keep their examples apart."""
        super().on_fit_start()
        if getattr(self.trainer.datamodule, "packing", False):  # type: ignore[attr-defined]
            check_packing(self.model)

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._start()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the batch to the set that the data module names."""
        self._add(batch, self.evaluation_sets()[dataloader_idx])

    def on_validation_epoch_end(self) -> None:
        """`val/loss`, each scored token of the whole set counted once, and `val/perplexity`, its exponential."""
        self._finish()

    def on_test_epoch_start(self) -> None:
        """Start counting."""
        self._start()
        answered = hasattr(getattr(self.trainer, "datamodule", None), "score_answers")
        self._answers = {name: [] for name in self.evaluation_sets()} if answered else {}

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the batch to its test set; where there are gold answers, generate beside them."""
        name = self.evaluation_sets()[dataloader_idx]
        if "gold" in batch:
            kept = ("row", "prompt", "gold")
            answers = zip(*(batch[column] for column in kept), self._generated(batch, name), strict=True)
            self._answers[name] += [dict(zip((*kept, "text"), answer, strict=True)) for answer in answers]
        else:
            self._add(batch, name)

    def on_test_epoch_end(self) -> None:
        """`test/loss` and `test/perplexity`; or each set's own metrics, and `average/accuracy`, the sets alike.

        Generated answers go to `generations/NAME.jsonl` in the log folder, if there is one, also
        where they can't be scored.
        """
        if self._answers:
            self._finish_answers()
        else:
            self._finish()

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> list[str]:
        """Generated answers; InputError where the data module has none to generate. `predict` writes prompts too."""
        if "gold" not in batch:
            raise InputError("predict generates answers; give data with test sets to answer, such as Math")
        texts = self._generated(batch, self.evaluation_sets()[dataloader_idx])
        self.predicted = [{"prompt": p, "text": text} for p, text in zip(batch["prompt"], texts, strict=True)]
        return texts

    def summed_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed loss over the scored tokens (0-d, float32, nats), and their number (0-d)."""
        logits, wanted, scored = scored_logits(self.model, batch)
        return F.cross_entropy(logits.float(), wanted, reduction="sum"), scored.sum()

    def _start(self) -> None:
        # Every set on every process, also where a process gets no batch of it, since all are summed up.
        zeros = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._totals = {name: zeros.clone() for name in self.evaluation_sets()}

    def _add(self, batch: dict[str, Tensor], name: str) -> None:
        self._totals[name] += torch.stack(self.summed_loss(batch))

    def _finish(self) -> None:
        for name, totals in self._totals.items():
            summed, count = self.trainer.strategy.reduce(totals, reduce_op="sum")
            loss = summed / count
            for metric, value in (("loss", loss), ("perplexity", loss.exp())):
                self.log(f"{name}/{metric}", value.float(), prog_bar=True, sync_dist=True)

    def _generated(self, batch: dict[str, Any], name: str) -> list[str]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        settings = data.test_generation(name)
        with isolate_rng():
            if settings.get("do_sample"):
                # Processes have one seed, and a prompt's draws are spread over them: each batch has its own.
                place = f"{torch.initial_seed()} {name} {batch['row'][0]}".encode()
                torch.manual_seed(int.from_bytes(hashlib.blake2b(place, digest_size=7).digest(), "big"))
            return continue_batch(self.model, data.tokenizer, batch, data.max_new_tokens, settings)

    def _finish_answers(self) -> None:
        log_folder = own_folder(self.trainer)
        folder = log_folder / "generations" if log_folder else None
        accuracies = []
        for name, answers in self._answers.items():
            metrics = self._scored(name, self._gathered(answers), folder)
            accuracies += [value for metric, value in metrics.items() if metric == "accuracy"]
            for metric, value in metrics.items():
                self.log(f"{name}/{metric}", value, prog_bar=True, sync_dist=True)
        if len(accuracies) > 1:
            self.log("average/accuracy", sum(accuracies) / len(accuracies), prog_bar=True, sync_dist=True)

    def _gathered(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The answers of all processes, in the order of their rows."""
        parts: list[Any] = [answers]
        if self.trainer.world_size > 1:
            parts = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, answers)
        return sorted((answer for part in parts for answer in part), key=lambda answer: int(answer["row"]))

    def _scored(self, name: str, answers: list[dict[str, Any]], folder: Path | None) -> dict[str, float]:
        """Metrics of a test set, the same on every process; the first one scores and writes."""
        metrics: dict[str, float] = {}
        if self.trainer.is_global_zero:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            try:
                data = self.trainer.datamodule  # type: ignore[attr-defined]
                metrics = data.score_answers(name, answers, folder)
            finally:  # what took hours to generate is kept, whatever becomes of its scores
                if folder is not None:
                    lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
                    write_text(folder / f"{name}.jsonl", "".join(lines))
        return self.trainer.strategy.broadcast(metrics)


def scored_logits(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What a decoder holds of the tokens that are scored: logits (scored, vocabulary), and the tokens (scored,).

    Also which they are: True at their places, (rows, some), in whose order the others are.

    Args:
        model: a decoder of transformers or peft.
        batch: as `CausalLM` takes it.
    """
    wanted = batch["labels"][:, 1:]
    scored = wanted != -100
    columns = scored.any(0).nonzero()
    first = int(columns[0]) if len(columns) else wanted.shape[1]
    # Of an answer at the end, only its part of the (length × vocabulary) logits is worth computing.
    keep = wanted.shape[1] - first + 1
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    options = {"use_cache": False, "logits_to_keep": keep}
    known = inspect.signature(model.forward).parameters
    logits = model(**inputs, **{name: value for name, value in options.items() if name in known}).logits
    # Counted from the end: a learned prompt puts positions of its own before the tokens, and a
    # model without logits_to_keep gives all. The last position predicts what is not in the batch.
    logits = logits[:, -keep:-1]
    wanted, scored = wanted[:, first:], scored[:, first:]
    return logits[scored], wanted[scored], scored
