"""Prompts and answers, written from the columns of a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lit_spectral.datamodules.columns import as_text, with_fields
from lit_spectral.datamodules.files import check_columns, read_split, split_exists
from lit_spectral.datamodules.packing import PackedRows, collate_packed
from lit_spectral.datamodules.prompts import Template, layout, parse
from lit_spectral.datamodules.sources import Source, name_row, source_of
from lit_spectral.datamodules.text import TextDataModule
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from lit_spectral.errors import InputError, check_at_least

__all__ = ["PromptedText"]

log = logging.getLogger(__name__)


class PromptedText(TextDataModule):
    r"""Rows of a prompt and an answer, of which the answer alone is scored.

    `prompt`, `input` and `answer` are texts with columns in braces, such as `"{instruction}"` and
    `"{output}"`; a brace itself is doubled, and `{column.field}` is a field of a column of objects.
    `template` lays the three out. A row is the tokenizer's BOS, if it adds one, what is given, the
    answer and EOS; a chat template writes these special tokens itself. What is given and the answer
    are tokenised apart, so that no token lies across their boundary and a prompt is the same tokens
    with and without its answer.

    Columns are text as the files spell it, or are made text (`columns`). Without a `validation` split,
    `validation_rows` rows of `train`, the last after a seeded shuffle, are held out and not trained
    on, which is logged.

    With `packing`, training rows hold several examples each, up to `max_length` tokens, none of
    which sees another. Which share a row depends on `seed`, the order of rows on `seed` and epoch;
    since all rows are about full, grouping them by length, as unpacked ones are, changes nothing.
    Evaluation is never packed.

    Args:
        path: a folder with `train` and, if there is one, `validation` (jsonl, json, parquet or csv; or
            another usual name, such as `val` or `dev`), or a hub id.
        prompt: what is given, written from columns.
        answer: what is to be said, written from columns.
        input: what the prompt is about, written from columns, where it is a part of its own; it may
            come out empty.
        template: `plain` (prompt, and input on a line below), `alpaca`, `llm-adapters`, or the
            tokenizer's own: `chat`, or `chat-eos`, where an answer ends by EOS whatever the template says.
        loss_on: `answer` and EOS, or `all` tokens.
        packing: whether training rows are packed. For backbones whose attention transformers masks
            by positions (Llama, Qwen, Mistral, GPT-2 and most others); CausalLM refuses the rest.
        too_long: an example above `max_length` tokens is `cut` (it loses the beginning of its
            prompt, and the end of its answer where the answer alone is too long; BOS stays), left
            out by `skip`, or an `error`. How many were cut or left out is logged.
        max_characters: of what is given and the answer together, above which a row is left out, and
            counted: the same rows whatever the tokenizer. None for any.
        empty_answer: an `error`, or left out by `skip`, and counted.
        subset: of the hub's data set; in a folder, a subfolder of that name if there is one.
        validation_rows: rows to hold out where there is no `validation` split, at least 1; 120 as
            LLM-Adapters (Hu et al., 2023).
        batch_size: as in `TextDataModule`.
        eval_batch_size: as in `TextDataModule`; None for `batch_size`.
        max_length: as in `TextDataModule`, at least 2.
        settings: of `TextDataModule`; its `seed` is also that of the rows held out and of packing.
    """

    def __init__(
        self,
        path: str,
        prompt: str,
        answer: str,
        input: str = "",
        template: Template = "plain",
        loss_on: Literal["answer", "all"] = "answer",
        packing: bool = False,
        too_long: Literal["cut", "skip", "error"] = "cut",
        max_characters: int | None = None,
        empty_answer: Literal["error", "skip"] = "error",
        subset: str | None = None,
        validation_rows: int = 120,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        max_length: int = 512,
        **settings: Any,
    ) -> None:
        # Logits of long rows over a large vocabulary don't leave room for four times the batch.
        super().__init__(batch_size, eval_batch_size or batch_size, max_length, **settings)
        check_at_least(2, max_length=max_length)
        check_at_least(1, validation_rows=validation_rows, max_characters=max_characters)
        self.path = path
        self.subset = subset
        self.validation_rows = validation_rows
        self.template: Template = template
        self.loss_on = loss_on
        self.packing = packing
        self.too_long = too_long
        self.max_characters = max_characters
        self.empty_answer = empty_answer
        self.templates = {"prompt": prompt, "input": input, "answer": answer}
        for name, text in self.templates.items():
            if not isinstance(text, str):
                raise InputError(f"data.{name}: {text!r} is no text; write some with columns in braces: '{{{name}}}'")
        self._told: dict[str, list[str]] = {}
        self._parts = {name: parse(f"data.{name}", text) for name, text in self.templates.items()}

    def tokenised(self, name: str) -> Any:
        """Rows of `input_ids`, `attention_mask` and `labels`, -100 on what is not scored."""
        if name == "test" or self.has_validation():
            return self._encoded({"val": "validation"}.get(name, name))
        rows = self._encoded("train").shuffle(seed=self.seed)
        kept = len(rows) - self.validation_rows
        if kept < 1:
            raise InputError(
                f"data.path: {self.path} has no validation split, and of its {len(rows)} train rows "
                f"{self.validation_rows} can't be held out; give a validation file, or a smaller --data.validation_rows"
            )
        if name != "train":
            log.info(
                "%s: no validation split; %d of %d training rows are held out to validate on",
                self.path, self.validation_rows, len(rows),
            )  # fmt: skip
        return rows.select(range(kept) if name == "train" else range(kept, len(rows)))

    def has_validation(self) -> bool:
        """Whether there are rows to validate on; else some of `train` are held out."""
        return split_exists(self.path, "validation", self.subset)

    def rows(self, split: str) -> Any:
        """The raw rows of a split, with the columns that the templates name."""
        return read_split(self.path, split, self.subset)

    def source(self, split: str) -> Source:
        """Where the rows come from that `rows` last gave for the split."""
        return source_of(self.path, split, self.subset)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled by seed and epoch, and packed where that is asked for."""
        if self.packing and not isinstance(self.splits["train"], PackedRows):
            rows = self.splits["train"]
            lengths = self._lengths(rows)
            packed = self.splits["train"] = PackedRows(rows, lengths, self._longest, self.seed)
            full = sum(lengths) / (len(packed) * self._longest)
            log.info("packed %d examples into %d rows, %.0f %% full", len(rows), len(packed), 100 * full)
        return super().train_dataloader()

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """Rows padded on the right to the longest of them, and with -100 in `labels`."""
        if "position_ids" in rows[0]:
            return collate_packed(rows, self.tokenizer.pad_token_id)
        padding = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        return {
            name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }

    def pieces(
        self, rows: Any, source: Source
    ) -> tuple[Any, Callable[[dict[str, Any], int], list[tuple[str, bool]]], list[int], list[int]]:
        """The rows as they are to be written, what writes one, and the tokens that come before and after each.

        From a batch of columns and an index it goes to texts and whether each is scored, the last of which is;
        none for a row without an answer.
        """
        rows, write, bos, ending = self._writer(rows, ("prompt", "input", "answer"), self.template, source)
        given_scored = self.loss_on == "all"

        def two(batch: dict[str, Any], i: int) -> list[tuple[str, bool]]:
            given, said, answer = write(batch, i)
            return [(given, given_scored), (said, True)] if answer.strip() else []

        return rows, two, bos, ending

    def _encoded(self, split: str) -> Any:
        rows = self.rows(split)
        source = self.source(split)  # after them: only then is it known which are left out
        rows, write, bos, ending = self.pieces(rows, source)
        tokenizer, longest, bos_scored = self.tokenizer, self._longest, self.loss_on == "all"
        too_long, most, empty_answer = self.too_long, self.max_characters, self.empty_answer

        # All in functions without a module's name, since datasets finds what it has cached by their code alone.
        def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
            kept = []
            for i, number in enumerate(numbers):
                pieces = write(batch, i)
                if pieces:
                    if most is None or sum(len(text) for text, _ in pieces) <= most:
                        kept.append((number, pieces))
                elif empty_answer == "error":
                    raise InputError(
                        f"{name_row(source, number)}: the answer is empty; "
                        "leave the row out, or give --data.empty_answer skip"
                    )
            texts = [text for _, pieces in kept for text, _ in pieces]
            plain = {"add_special_tokens": False, "verbose": False}  # lengths are this function's own business
            tokens = iter(tokenizer(texts, **plain)["input_ids"] if texts else [])
            encoded: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "cut": []}
            for number, pieces in kept:
                *before, last = [(next(tokens), scored) for _, scored in pieces]
                ids = [token for piece, _ in before for token in piece]
                labels = [token if scored else -100 for piece, scored in before for token in piece]
                length = len(bos) + len(ids) + len(last[0]) + len(ending)
                if length > longest and too_long != "cut":
                    if too_long == "skip":
                        continue
                    raise InputError(
                        f"{name_row(source, number)}: {length} tokens, above the {longest} of a row; "
                        "give a larger --data.max_length, or --data.too_long cut or skip"
                    )
                # A chat template writes BOS itself.
                opening = 0 if bos else int(ids[:1] == [tokenizer.bos_token_id])
                room = longest - len(bos) - opening
                said = [*last[0], *ending][:room]
                end = max(opening, len(ids) - (room - len(said)))
                del ids[opening:end], labels[opening:end]
                row = [*bos, *ids, *said]
                encoded["input_ids"].append(row)
                encoded["attention_mask"].append([1] * len(row))
                encoded["labels"].append([*(bos if bos_scored else [-100] * len(bos)), *labels, *said])
                encoded["cut"].append(length > longest)
            return encoded

        options = {"batched": True, "with_indices": True, "remove_columns": rows.column_names}
        encoded = rows.map(encode, desc=f"tokenising {split}", **options)
        if not len(encoded):
            limits = "too_long, max_characters, empty_answer"
            raise InputError(f"data.path: no row of split {split} of {self.path} is left; see {limits}")
        left_out, cut = len(rows) - len(encoded), sum(encoded["cut"])
        told = [f"{left_out} of {len(rows)} rows left out, of an empty answer or too long"] if left_out else []
        told += [f"{cut} of {len(rows)} rows cut to {longest} tokens"] if cut else []
        if self._told.get(split) != told:  # `train` is read again for the rows that are held out of it
            self._told[split] = told
            for line in told:
                log.warning("%s: %s", split, line)
        return encoded

    def _writer(
        self, rows: Any, names: Sequence[str], template: Template, source: Source
    ) -> tuple[Any, Callable[..., Any], list[int], list[int]]:
        """The rows with what is written of them as text, what writes them, BOS and the ending.

        It goes from a batch of columns and an index to what is given, what is to be said and the answer.
        Only the templates in `names` are written; the others come out empty.
        """
        for name in names:
            text = self.templates[name]
            if text in rows.column_names:
                raise InputError(f"data.{name}: {text} is a column's name; write '{{{text}}}'")
            if name == "answer" and not any(column for _, column in self._parts[name]):
                raise InputError(f"data.answer: {text!r} names no column; write one in braces, as in '{{answer}}'")
        parts = {name: self._parts[name] if name in names else [] for name in self._parts}
        columns = list(dict.fromkeys(column for part in parts.values() for _, column in part if column))
        rows = with_fields(rows, columns)
        check_columns(rows, columns, source.name)
        rows = as_text(rows, columns, source)
        if self.tokenizer.eos_token_id is None:
            raise InputError("data.tokenizer: it has no EOS token to end answers with; give a decoder's tokenizer")
        lay_out = layout(template, self.tokenizer)

        def write(batch: dict[str, list[Any]], i: int) -> tuple[str, str, str]:
            texts = {
                name: "".join(literal + (batch[column][i] if column else "") for literal, column in part)
                for name, part in parts.items()
            }
            return *lay_out(texts["prompt"], texts["input"], texts["answer"]), texts["answer"]

        own = template.startswith("chat")  # it writes what comes first
        ending = [] if template == "chat" else [self.tokenizer.eos_token_id]
        return rows, write, [] if own else self._opening, ending
