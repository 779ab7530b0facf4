"""Prompts and answers, written from the columns of a data set."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
from lit_spectral.datamodules.files import check_columns, read_split, split_exists
from lit_spectral.datamodules.text import TextDataModule
from torch.nn.utils.rnn import pad_sequence

from lit_spectral.errors import InputError

__all__ = ["PromptedText"]


class PromptedText(TextDataModule):
    r"""Rows of a prompt and an answer, of which the answer alone is scored.

    `prompt` and `answer` are texts with columns in braces, such as `"{instruction}\n"` and
    `"{output}"`; a brace itself is doubled. A row is the tokenizer's BOS, if it adds one, the
    prompt, the answer and EOS. The two are tokenised apart, so that no token lies across their
    boundary and a prompt is the same tokens with and without its answer.

    A row that is too long loses the beginning of its prompt, and the end of its answer where the
    answer alone is too long; BOS stays. Without a `validation` split, `validation_rows` rows of
    `train`, the last after a seeded shuffle, are held out and not trained on.

    Args:
        path: a folder with `train` and, if there is one, `validation` (jsonl, json, parquet or csv), or a hub id.
        prompt: what is given, written from columns.
        answer: what is to be said, written from columns.
        subset: of the hub's data set; in a folder, a subfolder of that name if there is one.
        validation_rows: rows to hold out where there is no `validation` split, at least 1; 120 as
            LLM-Adapters (Hu et al., 2023).
        batch_size: as in `TextDataModule`.
        eval_batch_size: as in `TextDataModule`; None for `batch_size`.
        max_length: as in `TextDataModule`, at least 2.
        tokenizer: as in `TextDataModule`.
        num_workers: as in `TextDataModule`.
        seed: of the order of training rows, and of the rows held out.
    """

    def __init__(
        self,
        path: str,
        prompt: str,
        answer: str,
        subset: str | None = None,
        validation_rows: int = 120,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        max_length: int = 512,
        tokenizer: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        # Logits of long rows over a large vocabulary don't leave room for four times the batch.
        super().__init__(batch_size, eval_batch_size or batch_size, max_length, tokenizer, num_workers, seed)
        if max_length < 2 or validation_rows < 1:
            raise InputError(f"max_length is at least 2 and validation_rows 1, not {max_length} and {validation_rows}")
        self.path = path
        self.subset = subset
        self.validation_rows = validation_rows
        self.templates = {"prompt": prompt, "answer": answer}
        self._parts = {name: _parse(name, text) for name, text in self.templates.items()}

    def tokenised(self, name: str) -> Any:
        """Rows of `input_ids`, `attention_mask` and `labels`, -100 on BOS and prompt."""
        if name == "test" or split_exists(self.path, "validation", self.subset):
            return self._encoded({"val": "validation"}.get(name, name))
        rows = self._encoded("train").shuffle(seed=self.seed)
        kept = len(rows) - self.validation_rows
        if kept < 1:
            raise InputError(
                f"data.path: {self.path} has no validation split, and of its {len(rows)} train rows "
                f"{self.validation_rows} can't be held out; give a validation file, or a smaller --data.validation_rows"
            )
        return rows.select(range(kept) if name == "train" else range(kept, len(rows)))

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """Rows padded on the right to the longest of them, and with -100 in `labels`."""
        padding = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
        return {
            name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }

    def _encoded(self, split: str) -> Any:
        rows, where = read_split(self.path, split, self.subset), f"split {split}"
        for name, text in self.templates.items():
            if text in rows.column_names:
                raise InputError(f"data.{name}: {text} is a column's name; write '{{{text}}}'")
        columns = list(dict.fromkeys(column for parts in self._parts.values() for _, column in parts if column))
        check_columns(rows, columns, where)
        for column in columns:
            _check_values(rows[column], column, where)
        tokenizer, longest, bos, parts = self.tokenizer, self._longest, self._opening, self._parts
        eos = tokenizer.eos_token_id
        if eos is None:
            raise InputError("data.tokenizer: it has no EOS token to end answers with; give a decoder's tokenizer")

        # All in one function, since datasets finds what it has cached by the code of this one alone.
        def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
            texts: dict[str, list[str]] = {
                name: [
                    "".join(literal + (str(batch[column][i]) if column else "") for literal, column in template)
                    for i in range(len(numbers))
                ]
                for name, template in parts.items()
            }
            for number, text in zip(numbers, texts["answer"], strict=True):
                if not text.strip():
                    raise InputError(f"{where}, row {number}: the answer is empty; leave the row out")
            plain = {"add_special_tokens": False, "verbose": False}  # lengths are this function's own business
            prompts = tokenizer(texts["prompt"], **plain)["input_ids"]
            answers = tokenizer(texts["answer"], **plain)["input_ids"]
            ids, labels = [], []
            for prompt, answer in zip(prompts, answers, strict=True):
                scored = [*answer, eos][: longest - len(bos)]
                room = longest - len(bos) - len(scored)
                given = [*bos, *prompt[max(0, len(prompt) - room) :]]
                ids.append(given + scored)
                labels.append([-100] * len(given) + scored)
            return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": labels}

        options = {"batched": True, "with_indices": True, "remove_columns": rows.column_names}
        return rows.map(encode, desc=f"tokenising {split}", **options)


def _parse(name: str, text: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the column that follows it; None where no column does."""
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"data.{name}: {text!r}: {error}; a column is {{column}}, a brace {{{{ or }}}}") from None
    for literal, column, specification, conversion in fields:
        if "\\n" in literal:
            raise InputError(
                f"data.{name}: {text!r} holds a backslash and an n; for a new line write $'…\\n' in the shell, "
                'and "…\\n" in double quotes in YAML'
            )
        if column is not None and (not column or specification or conversion):
            raise InputError(f"data.{name}: {text!r}: between braces stands the name of a column and nothing else")
    return [(literal, column) for literal, column, _, _ in fields]


def _check_values(values: Sequence[Any], column: str, where: str) -> None:
    for row, value in enumerate(values):
        if not isinstance(value, (str, int, float)):
            raise InputError(f"{where}, row {row}: {column} is {value!r}, neither text nor a number")
