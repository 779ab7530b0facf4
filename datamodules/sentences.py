"""Labelled sentences and sentence pairs: GLUE, and any data set of that form."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lit_spectral.datamodules.columns import as_text
from lit_spectral.datamodules.files import check_columns
from lit_spectral.datamodules.labels import Labels, read_labels
from lit_spectral.datamodules.sources import Source
from lit_spectral.datamodules.text import TextDataModule
from torch.utils.data import DataLoader

from lit_spectral.errors import InputError

__all__ = ["SentenceDataModule"]

log = logging.getLogger(__name__)


class SentenceDataModule(TextDataModule):
    """One or two text columns and a label; a subclass says where the rows come from.

    Labels of classes are whole numbers or names, and may be spelled. The number of a name is that of the
    model's checkpoint; else of the training split's column, if it names its classes (`ClassLabel`); else
    of `official_names`, if all names are among them; else its place among the training split's names,
    sorted. A name in capitals is the same name. Labels of regression are numbers.

    Attributes:
        num_labels: classes, or 1 for regression.
        metrics: names of the task's metrics, the main one first.
        text_columns: one or two.
        label_range: smallest and largest label allowed.
        official_names: of the classes by their numbers, where the data set has such.
        label_names: those that act; None until rows are numbered, and for regression.
    """

    num_labels: int
    metrics: Sequence[str]
    text_columns: Sequence[str]
    label_range: tuple[float, float]
    official_names: Sequence[str] = ()
    label_names: list[str] | None = None

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._labels: dict[str, Labels] = {}
        self._numbered_by: list[str] | None = None

    @abstractmethod
    def rows(self, name: str) -> Any:
        """The raw rows of `train`, `test` or an evaluation set, a `datasets.Dataset`."""

    def source(self, name: str) -> Source:
        """Where those come from; a subclass that reads files says which."""
        return Source(f"split {name}")

    def read_labels(self, rows: Any, source: Source) -> Labels:
        """The labels of rows from a source."""
        return read_labels(rows, source, self.num_labels, self.label_range)

    def setup(self, stage: str) -> None:
        """Read the splits, and number their labels once it is known how.

        A checkpoint that is to be loaded says how only after this, so that evaluation sets wait for their loader.
        """
        super().setup(stage)
        model = self.trainer.lightning_module if self.trainer else None
        names = getattr(model, "label_names", None)
        if names is not None:
            self.use_label_names(names)
        elif stage == "fit" or model is None or self.num_labels == 1:
            self._number()

    def use_label_names(self, names: Sequence[str]) -> None:
        """Number the labels of all splits that were read by these names of the classes.

        Raises:
            InputError: not a name a class; a label that is none of them, by its row; numbers that could be others.
        """
        if len(names) != self.num_labels:
            raise InputError(
                f"label_names: {len(names)} names for {self.num_labels} classes; give one a class, by their numbers"
            )
        twice = next((name for name in names if list(names).count(name) > 1), None)
        if twice is not None:
            raise InputError(f"label_names: {twice} is there twice; give each class its own")
        self.label_names = list(names)
        self._number()

    def tokenised(self, name: str) -> Any:
        """Checked and tokenised rows, without labels; columns are the tokenizer's."""
        rows = self.rows(name)
        source = self.source(name)
        labelled = self._stage() != "predict"  # the labels of GLUE's test sets are hidden
        check_columns(rows, [*self.text_columns, *(["label"] if labelled else [])], source.name)
        rows = as_text(rows, self.text_columns, source)
        if labelled:
            self._labels[name] = self.read_labels(rows, source)
        tokenizer, columns = self.tokenizer, list(self.text_columns)
        longest = self._room(pair=len(columns) > 1)

        def encode(batch: dict[str, Any]) -> dict[str, Any]:
            return dict(tokenizer(*(batch[c] for c in columns), truncation=True, max_length=longest))

        return rows.map(encode, batched=True, remove_columns=rows.column_names, desc=f"tokenising {name}")

    def _number(self) -> None:
        """Give every split that was read with labels the column `labels`."""
        if self.num_labels > 1 and self.label_names is None and self._labels:
            self.label_names = self._find_names()
        names, anew = self.label_names, self.label_names != self._numbered_by
        for name, labels in self._labels.items():
            rows = self.splits[name]
            if anew or "labels" not in rows.column_names:
                rows = rows.remove_columns("labels") if "labels" in rows.column_names else rows
                found = labels.numbers if names is None else labels.numbered(names, self.official_names)
                self.splits[name] = rows.add_column("labels", found)
        if anew and names and any(labels.words and labels.own_names != names for labels in self._labels.values()):
            log.info("labels are numbered %s", ", ".join(f"{number} {name}" for number, name in enumerate(names)))
        self._numbered_by = names

    def _find_names(self) -> list[str]:
        """The classes as the training split has them, which is read for nothing but words that need it."""
        given = self._labels.get("train") or next(iter(self._labels.values()))
        needed = given.words is not None and given.own_names is None and not given.are(self.official_names)
        if needed and "train" not in self._labels:
            try:
                rows, source = self.rows("train"), self.source("train")
                check_columns(rows, ["label"], source.name)
                given = self.read_labels(rows, source)
            except InputError as error:
                raise InputError(
                    f"{given.source.name}: its labels are names, which the training split numbers, and that can't be "
                    f"had ({error}); add it, or give --ckpt_path"
                ) from error
        return given.names(self.num_labels, self.official_names)

    def _loader(self, name: str, batch_size: int, shuffle: bool) -> DataLoader[Any]:
        if self._labels and "labels" not in self.splits[name].column_names:
            self._number()
        return super()._loader(name, batch_size, shuffle)
