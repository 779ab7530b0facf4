"""How much of what a backbone knew an adapted model still knows, on fixed texts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral import backbones
from lit_spectral.bars import track
from lit_spectral.datamodules.columns import as_text
from lit_spectral.datamodules.files import check_columns, read_split
from lit_spectral.datamodules.labels import read_labels
from lit_spectral.datamodules.sources import source_of
from lit_spectral.errors import InputError
from lit_spectral.reading import evaluating
from lit_spectral.retention.base_model import base_model, inner_model, original_weights
from lit_spectral.retention.base_states import BaseStates
from lit_spectral.retention.head import fitted_head, logits_of_states, masked_head
from lit_spectral.retention.measures import TokenScores, mean_pooled, spearman, token_scores
from lit_spectral.retention.texts import PROMPTS, first_rows, next_tokens, of_prompts, text_of
from lit_spectral.tasks import CausalLM, MaskedLM, Task

__all__ = ["Batch", "Outputs", "Retention", "check_prompts"]

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Rows of a text: `inputs` of the model, and the token that is `wanted` at each position that is `scored`.

    Both are (rows, length). Of an encoder without a masked-language head no position is scored.
    """

    inputs: dict[str, Tensor]
    wanted: Tensor
    scored: Tensor


class Outputs(NamedTuple):
    """What a model makes of a batch.

    `logits` (n, vocabulary) of its n scored positions; None for an encoder without a masked-language head. `states`,
    where they were asked for, (rows, length, width) of the embeddings and behind each layer, the last as the head has
    it.
    """

    logits: Tensor | None
    states: tuple[Tensor, ...]


def check_prompts(task: Task) -> None:
    """InputError for a task whose rows are nothing but input."""
    if not isinstance(task, CausalLM):
        raise InputError("retention: prompts are a decoder's, apart from its answers; give a text, or sts")


class Retention:
    """Fixed texts, and what an adapted model and its base model make of them.

    A decoder is measured by the next tokens of windows that don't overlap, an encoder by masked
    tokens, the same for every model, under its pretrained masked-language head. An encoder whose
    files have no such head is measured by how far the states of its sentences have turned. The base
    model is the same backbone with its adapters passed over, in the same precision.

    Args:
        corpora: from a name to a text: whatever `TextWindows` and `MaskedText` take as `path`, or of a
            decoder `prompts`, those of the data that its task is validated on. Or a list of texts,
            which go by themselves as names.
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
            raise InputError("retention: nothing to measure on; give corpora, or for an encoder sts, without fit_head")
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
        self._pooled: dict[str, Tensor] = {}  # the base model's, by text
        self._base_states = BaseStates()
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
        self._originals, self._pooled, self._base_states = original_weights(task), {}, BaseStates()
        self._head = None if decoder else _masked_head(task, source, self.fit_head)
        for name, path in self.corpora.items():
            if path == PROMPTS:
                self._texts[name] = _prompts(task, self.batch_size, self.limit)
                continue
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
                figures = self._tokens(task, name) if self.by_tokens(task) else self._drift(task, texts, name)
                found |= {f"{name}/{measure}": value for measure, value in figures.items()}
            if self._sentences:
                found |= {f"sts/{measure}": value for measure, value in self._sts(task).items()}
            return found

    def batches(self, task: Task, name: str) -> Iterator[Batch]:
        """Of one of the corpora, on the task's device."""
        for batch in self._texts[name]:
            inputs = {key: value.to(task.device) for key, value in batch.items()}
            labels = inputs.pop("labels", torch.full_like(inputs["input_ids"], -100))
            wanted = next_tokens(labels) if isinstance(task, CausalLM) else labels
            yield Batch(inputs, wanted, wanted != -100)

    def by_tokens(self, task: Task) -> bool:
        """Whether the model predicts tokens: it is a decoder, or an encoder with a masked-language head."""
        return self._head is not None or isinstance(task, CausalLM)

    def count(self, name: str) -> int:
        """How many batches a corpus has."""
        return len(self._texts[name])

    def base(self, task: Task) -> AbstractContextManager[None]:
        """Within it, the task's model computes what its backbone did."""
        return base_model(task, self._originals)

    def outputs(self, task: Task, batch: Batch, states: bool = False) -> Outputs:
        """What the model as it is now makes of a batch, and its hidden states too where they are asked for."""
        asked: dict[str, Any] = {"output_hidden_states": True} if states else {}
        if isinstance(task, (CausalLM, MaskedLM)):
            asked |= {"use_cache": False} if isinstance(task, CausalLM) else {}
            found: Any = task.model(**batch.inputs, **asked)
            # A learned prompt has positions of its own in front.
            return Outputs(found.logits[:, -batch.scored.shape[1] :][batch.scored], _states_in(found))
        encoder = _body(task)
        found = encoder(**batch.inputs, **asked)
        logits = None
        if self._head is not None:
            head = self._head.to(task.device, next(encoder.parameters()).dtype)  # bf16-true rounds the task's alone
            logits = logits_of_states(head, encoder, found.last_hidden_state, batch.inputs["input_ids"], batch.scored)
        return Outputs(logits, _states_in(found))

    def _tokens(self, task: Task, name: str) -> dict[str, float]:
        totals = torch.zeros(len(TokenScores._fields), dtype=torch.float64)
        for index, batch in enumerate(track(self.batches(task, name), f"retention on {name}", self.count(name))):
            logits = self.outputs(task, batch).logits
            with self.base(task), self._base_states.given(_body(task), (name, index)):
                base_logits = self.outputs(task, batch).logits
            assert logits is not None
            assert base_logits is not None
            totals += torch.stack(token_scores(logits, base_logits, batch.wanted[batch.scored])).cpu()
        sums = TokenScores(*(totals / totals[-1]).tolist())
        figures = {field: getattr(sums, field) for field in ("loss", "forgetting_loss", "base_loss", "base_entropy")}
        if isinstance(task, CausalLM):
            return figures | {"perplexity": _exp(sums.loss), "base_perplexity": _exp(sums.base_loss)}
        return figures | {"accuracy": sums.correct, "base_accuracy": sums.base_correct}

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
        encoder, known = _body(task), self._pooled.get(name)
        adapted, base = [], []
        for batch in track(batches, f"retention on {name}"):
            inputs = {key: value.to(task.device) for key, value in batch.items()}
            mask = inputs["attention_mask"]
            adapted.append(mean_pooled(encoder(**inputs).last_hidden_state, mask).cpu())
            if known is None:
                with self.base(task):
                    base.append(mean_pooled(encoder(**inputs).last_hidden_state, mask).cpu())
        if known is None:
            known = self._pooled[name] = torch.cat(base)
        return torch.cat(adapted), known


def _prompts(task: Task, size: int, limit: int | None) -> list[dict[str, Tensor]]:
    """Rows of the data that a decoder is validated on, labelled where a prompt's token follows another one."""
    check_prompts(task)
    data: Any = getattr(task._trainer, "datamodule", None)
    if data is None:
        raise InputError("retention: prompts are of the data that a task is validated on, and there is none here; "
                         "give a text, or --validate with a sweep of retain")  # fmt: skip
    asked = [of_prompts(batch) for batch in first_rows(data, size, limit)]
    if not any((batch["labels"] != -100).any() for batch in asked):
        raise InputError("retention: the rows have no prompts apart from what is trained on; give a text for prompts")
    return asked


def _states_in(found: Any) -> tuple[Tensor, ...]:
    """Hidden states among a model's outputs, of one with two halves those of its decoder; none unless asked for."""
    return found.get("hidden_states") or found.get("decoder_hidden_states") or ()


def _body(task: Task) -> nn.Module:
    """The model without its head."""
    model = inner_model(task)
    body: nn.Module = getattr(model, model.base_model_prefix)
    return body


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
            "or give --fit_head TEXT to fit one on", source
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
