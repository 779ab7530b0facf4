"""Labelled sentences and sentence pairs: GLUE, and any data set of that form."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lit_spectral.datamodules.files import check_columns
from lit_spectral.datamodules.text import TextDataModule

from lit_spectral.errors import InputError

__all__ = ["SentenceDataModule"]


class SentenceDataModule(TextDataModule):
    """One or two text columns and a label; a subclass says where the rows come from.

    Attributes:
        num_labels: classes, or 1 for regression.
        metrics: names of the task's metrics, the main one first.
        text_columns: one or two.
        label_range: smallest and largest label allowed.
    """

    num_labels: int
    metrics: Sequence[str]
    text_columns: Sequence[str]
    label_range: tuple[float, float]

    @abstractmethod
    def rows(self, name: str) -> Any:
        """The raw rows of `train`, `test` or an evaluation set, a `datasets.Dataset`."""

    def tokenised(self, name: str) -> Any:
        """Checked and tokenised rows; columns are the tokenizer's, and `labels`."""
        rows = self.rows(name)
        where = f"split {name}"
        labelled = self._stage() != "predict"  # the labels of GLUE's test sets are hidden
        check_columns(rows, [*self.text_columns, *(["label"] if labelled else [])], where)
        for column in self.text_columns:
            _check_text(rows[column], column, where)
        if labelled:
            self._check_labels(rows["label"], where)
        tokenizer, columns, longest = self.tokenizer, list(self.text_columns), self._longest
        number = float if self.num_labels == 1 else int

        def encode(batch: dict[str, Any]) -> dict[str, Any]:
            encoded = dict(tokenizer(*(batch[c] for c in columns), truncation=True, max_length=longest))
            return encoded | ({"labels": [number(y) for y in batch["label"]]} if labelled else {})

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"tokenising {name}")

    def _check_labels(self, labels: Sequence[Any], where: str) -> None:
        low, high = self.label_range
        hidden = sum(label == -1 for label in labels) == len(labels)
        if hidden and low >= 0:
            raise InputError(f"{where}: every label is -1, so they are hidden; use validate or predict")
        for row, label in enumerate(labels):
            if not isinstance(label, (int, float)) or not math.isfinite(label) or not low <= label <= high:
                raise InputError(f"{where}, row {row}: label {label!r} is outside {low:g} to {high:g}")
            if self.num_labels > 1 and label != int(label):
                raise InputError(f"{where}, row {row}: label {label!r} is no class; classes are whole numbers")


def _check_text(texts: Sequence[Any], column: str, where: str) -> None:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{where}, row {row}: {column} is {text!r}, not text")
