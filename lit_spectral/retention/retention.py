"""How much of what a backbone knew an adapted model still knows, on fixed texts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral import backbones
from lit_spectral.datamodules.columns import as_text
from lit_spectral.datamodules.files import check_columns, read_split
from lit_spectral.datamodules.labels import read_labels
from lit_spectral.datamodules.sources import source_of
from lit_spectral.errors import InputError
from lit_spectral.reading import evaluating
from lit_spectral.retention.base_model import base_model, inner_model, original_weights
from lit_spectral.retention.head import fitted_head, masked_head, masked_logits
from lit_spectral.retention.measures import TokenScores, mean_pooled, spearman, token_scores
from lit_spectral.retention.texts import next_tokens, text_of
from lit_spectral.tasks import CausalLM, MaskedLM, Task

__all__ = ["Retention"]

log = logging.getLogger(__name__)


class Retention:
    """Fixed texts, and what an adapted model and its base model make of them.

    A decoder is measured by the next tokens of windows that don't overlap, an encoder by masked
    tokens, the same for every model, under its pretrained masked-language head. An encoder whose
    files have no such head is measured by how far the states of its sentences have turned. The base
    model is the same backbone with its adapters passed over, in the same precision.

    Args:
        corpora: from a name to a text: whatever `TextWindows` and `MaskedText` take as `path`. Or a
            list of texts, which go by themselves as names.
        sts: a folder or hub id of sentence pairs in STS-B's form (`validation` with `sentence1`,
            `sentence2` and `label`); an encoder's mean-pooled states are compared with it.
        limit: windows, pages or lines of each corpus, from its start; None for all.
        max_length: tokens of a window, at most of a page, line or sentence.
        batch_size: windows, pages, lines or sentences at a time.
        fit_head: for an encoder without a masked-language head, a text on which to fit one, once
            (`fitted_head`); None to measure the drift of its states instead.
        pages: for a decoder, the texts of a corpus one by one, each cut, in place of windows over them all.

    Raises:
        InputError: neither corpora nor sts; a corpus named sts beside sts; a size below 1.
    """

    def __init__(
        self,
        corpora: Mapping[str, str] | Iterable[str] = (),
        sts: str | None = None,
        limit: int | None = 256,
        max_length: int = 256,
        batch_size: int = 8,
        fit_head: str | None = None,
        pages: bool = False,
    ) -> None:
        self.corpora = dict(corpora) if isinstance(corpora, Mapping) else {path: path for path in corpora}
        if not self.corpora and (sts is None or fit_head is not None):
            raise InputError("retention: nothing to measure on; give corpora, or without a head to fit sts")
        if sts is not None and "sts" in self.corpora:
            raise InputError("retention: sts is what the sentence pairs go by; give the text another name, NAME=TEXT")
        for name, size in (("limit", limit), ("max_length", max_length), ("batch_size", batch_size)):
            if size is not None and size < 1:
                raise InputError(f"retention: {name} is at least 1, not {size}")
        self.sts = sts
        self.limit = limit
        self.max_length = max_length
        self.batch_size = batch_size
        self.fit_head = fit_head
        self.pages = pages
        self._texts: dict[str, list[dict[str, Tensor]]] = {}
        self._sentences: list[dict[str, Tensor]] = []
        self._gold = torch.empty(0)
        self._originals: dict[str, Tensor] = {}
        self._base_states: dict[str, Tensor] = {}
        self._head: nn.Module | None = None

    def prepare(self, task: Task) -> None:
        """Read and tokenise the texts, and load the head that goes with an encoder.

        Raises:
            InputError: a text that can't be had or is too short; what this model can't be measured by.
        """
        source = backbones.fetch(task.backbone)
        decoder = isinstance(task, CausalLM)
        if self.sts is not None and decoder:
            raise InputError("retention: sts compares the states of encoders' sentences; leave it out for a decoder")
        if self.pages and not decoder:
            raise InputError("retention: pages are of a decoder's corpora; an encoder's are read line by line")
        if inner_model(task) is not task.model and not isinstance(task, (CausalLM, MaskedLM)):
            raise InputError("retention: a learned prompt is no part of the encoder that it is put before; "
                             "measure methods that adapt weights")  # fmt: skip
        self._originals, self._base_states = original_weights(task), {}
        self._head = None if decoder else _masked_head(task, source, self.fit_head)
        for name, path in self.corpora.items():
            sizes = (self.limit, self.max_length, self.batch_size)
            data = text_of(task, path, self._head is not None, *sizes, self.pages)
            self._texts[name] = [dict(batch) for batch in data.val_dataloader()[0]]
        if self.sts is not None:
            self._sentences, self._gold = _sentence_pairs(self.sts, source, self.max_length, self.batch_size)

    @torch.no_grad()
    def measure(self, task: Task) -> dict[str, float]:
        """From `<corpus>/<measure>` and `sts/<measure>` to values.

        Of a decoder's corpus `loss`, `perplexity`, `forgetting_loss` and, of the base model,
        `base_loss`, `base_perplexity` and `base_entropy`; of an encoder's with a head `accuracy`
        and `base_accuracy` in place of perplexities. Of sts, and of the corpora of an encoder without
        a head, `drift`: 1 less the mean cosine between a sentence's states in both models, in [0, 2].
        Of sts also `spearman` and `base_spearman`. Modes and random states are left as they are.
        """
        with evaluating(task):
            found: dict[str, float] = {}
            for name, texts in self._texts.items():
                by_tokens = self._head is not None or isinstance(task, CausalLM)
                figures = self._tokens(task, texts, name) if by_tokens else self._drift(task, texts, name)
                found |= {f"{name}/{measure}": value for measure, value in figures.items()}
            if self._sentences:
                found |= {f"sts/{measure}": value for measure, value in self._sts(task).items()}
            return found

    def _tokens(self, task: Task, texts: list[dict[str, Tensor]], name: str) -> dict[str, float]:
        totals = torch.zeros(len(TokenScores._fields), dtype=torch.float64)
        for batch in track(texts, f"retention on {name}", transient=True):
            inputs = {key: value.to(task.device) for key, value in batch.items()}
            labels = inputs.pop("labels")
            if isinstance(task, CausalLM):
                labels = next_tokens(labels)
            scored = labels != -100
            logits = self._logits(task, inputs, scored)
            with base_model(task, self._originals):
                base_logits = self._logits(task, inputs, scored)
            totals += torch.stack(token_scores(logits, base_logits, labels[scored])).cpu()
        sums = TokenScores(*(totals / totals[-1]).tolist())
        figures = {field: getattr(sums, field) for field in ("loss", "forgetting_loss", "base_loss", "base_entropy")}
        if isinstance(task, CausalLM):
            return figures | {"perplexity": _exp(sums.loss), "base_perplexity": _exp(sums.base_loss)}
        return figures | {"accuracy": sums.correct, "base_accuracy": sums.base_correct}

    def _logits(self, task: Task, inputs: dict[str, Tensor], scored: Tensor) -> Tensor:
        """Of the scored positions, (n, vocabulary)."""
        model: Any = task.model
        if not isinstance(task, (CausalLM, MaskedLM)):
            assert self._head is not None
            encoder = _encoder(task)
            head = self._head.to(task.device, next(encoder.parameters()).dtype)  # bf16-true rounds the task's alone
            return masked_logits(head, encoder, inputs, scored)
        options = {"use_cache": False} if isinstance(task, CausalLM) else {}
        logits: Tensor = model(**inputs, **options).logits
        return logits[:, -scored.shape[1] :][scored]  # a learned prompt has positions of its own in front

    def _drift(self, task: Task, texts: list[dict[str, Tensor]], name: str) -> dict[str, float]:
        states, base = self._states(task, texts, name)
        return {"drift": float(1 - F.cosine_similarity(states, base).mean())}

    def _sts(self, task: Task) -> dict[str, float]:
        states, base = self._states(task, self._sentences, "sts")
        found = {"drift": float(1 - F.cosine_similarity(states, base).mean())}
        for measure, pooled in (("spearman", states), ("base_spearman", base)):
            first, second = pooled[0::2], pooled[1::2]
            found[measure] = spearman(F.cosine_similarity(first, second), self._gold)
        return found

    def _states(self, task: Task, batches: list[dict[str, Tensor]], name: str) -> tuple[Tensor, Tensor]:
        """Mean-pooled states of all sentences, adapted and base, (n, width), float32, on the CPU.

        The base's, which never change, are computed the first time only.
        """
        encoder, known = _encoder(task), self._base_states.get(name)
        adapted, base = [], []
        for batch in track(batches, f"retention on {name}", transient=True):
            inputs = {key: value.to(task.device) for key, value in batch.items()}
            mask = inputs["attention_mask"]
            adapted.append(mean_pooled(encoder(**inputs).last_hidden_state, mask).cpu())
            if known is None:
                with base_model(task, self._originals):
                    base.append(mean_pooled(encoder(**inputs).last_hidden_state, mask).cpu())
        if known is None:
            known = self._base_states[name] = torch.cat(base)
        return torch.cat(adapted), known


def _encoder(task: Task) -> nn.Module:
    model = inner_model(task)
    encoder: nn.Module = getattr(model, model.base_model_prefix)
    return encoder


def _masked_head(task: Task, source: str, text: str | None) -> Any:
    """The masked-language model, whose encoder is put aside for the task's; None where it has no head, nor a text."""
    if isinstance(task, MaskedLM):
        return inner_model(task)
    head = masked_head(task)
    if head is None and text is not None:
        return fitted_head(source, text, task.device)
    if head is None:
        log.warning(
            "retention: %s has no masked-language head; its states' drift is measured instead, "
            "or give a text to fit one on: fit_head", source
        )  # fmt: skip
    return head


def _exp(loss: Any) -> float:
    """Infinite where it is too large for a float: a model that has come apart is measured too."""
    return math.exp(loss) if loss < 709 else math.inf


def _sentence_pairs(sts: str, source: str, max_length: int, batch_size: int) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Batches of sentences, those of a pair next to each other, and the gold scores."""
    rows = read_split(sts, "validation", "stsb")
    given = source_of(sts, "validation", "stsb")
    check_columns(rows, ["sentence1", "sentence2", "label"], given.name)
    rows = as_text(rows, ["sentence1", "sentence2"], given)
    gold = read_labels(rows, given, 1, (-math.inf, math.inf)).numbers
    tokenizer = backbones.load_tokenizer(source)
    sentences = [text for pair in zip(rows["sentence1"], rows["sentence2"], strict=True) for text in pair]
    longest = min(max_length, int(tokenizer.model_max_length))
    options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
    starts = range(0, len(sentences), 2 * batch_size)
    batches = [dict(tokenizer(sentences[start : start + 2 * batch_size], **options)) for start in starts]
    return batches, torch.tensor(gold, dtype=torch.float32)
