"""Text of one's own with labels, whatever its columns and classes are called."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lit_spectral.datamodules.columns import spelled_number
from lit_spectral.datamodules.files import check_columns, read_split, split_exists
from lit_spectral.datamodules.labels import Labels, read_labels, read_words
from lit_spectral.datamodules.sentences import SentenceDataModule
from lit_spectral.datamodules.sources import Source, source_of

from lit_spectral.errors import InputError

__all__ = ["LabelledText"]

log = logging.getLogger(__name__)


class LabelledText(SentenceDataModule):
    """Rows of a text, or of a pair of texts, and a label: which columns is said, the rest is found.

    Classes are the training split's labels, each text one of them (`3` and `003` are two, `No` and `NO` one), in order;
    checkpoints keep them. Without a `validation` split some training rows, drawn by `seed`, are held out
    and not trained on, which is logged.

    Args:
        path: a file of rows (csv, jsonl, json or parquet) to train on, and of `predict` to be told; a folder
            with `train` and, if there are such, `validation` and `test` files; or a hub id.
        text: the column with the text; two of them, as a list, for pairs.
        label: the column with the class, or the number.
        classes: their names, in the order of the model's outputs; None for those of the checkpoint or adapter that
            the command line is given, else of the training split.
        regression: whether labels are numbers to be told, and no classes.
        validation_fraction: of the training rows, held out where there is no `validation` split, in (0, 1).
        settings: of `TextDataModule`; its `seed` is also that of the rows held out.
    """

    def __init__(
        self,
        path: str,
        text: str | list[str] = "text",
        label: str = "label",
        classes: list[str] | None = None,
        regression: bool = False,
        validation_fraction: float = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.text_columns = [text] if isinstance(text, str) else text
        if not 1 <= len({*self.text_columns} - {label, "label"}) == len(self.text_columns) <= 2:
            raise InputError(f"data.text: {text} is not one column, or a list of two, none of them {label} or label")
        if not 0 < validation_fraction < 1:
            raise InputError(f"data.validation_fraction lies between 0 and 1; it is {validation_fraction}")
        if classes is not None and (regression or len({*classes}) < max(2, len(classes))):
            raise InputError("data.classes: give two or more names, each once, and none with --data.regression true")
        self.path = path
        self.label = label
        self.regression = regression
        self.validation_fraction = validation_fraction
        self.metrics = ("pearson", "spearman") if regression else ("accuracy", "f1")
        self.label_range = (-math.inf, math.inf)
        self._numbers: dict[str, list[int] | None] = {}
        self.num_labels = 1 if regression else 0  # until it is known which classes there are
        if classes is not None:
            self.name_classes(classes)

    def name_classes(self, names: Sequence[str]) -> None:
        """Say which classes there are, by their numbers, before anything is read."""
        self.label_names, self.num_labels = list(names), len(names)

    def setup(self, stage: str) -> None:
        """Find out which classes there are, and read the splits."""
        if not self.num_labels:
            model = self.trainer.lightning_module if self.trainer else None
            self.name_classes(getattr(model, "label_names", None) or self._trained_classes())
        super().setup(stage)

    def rows(self, name: str) -> Any:
        """The raw rows of a split: its texts, and the label as `label`."""
        rows, source = read_split(self.path, self._split(name)), source_of(self.path, self._split(name))
        labelled = [self.label] if self._stage() != "predict" or self.label in rows.column_names else []
        check_columns(rows, [*self.text_columns, *labelled], source.name)
        rows = self._chosen(rows, [*self.text_columns, *labelled])
        numbers = self._numbers[name] = self._held(name, len(rows))
        if name == "val" and numbers is not None:
            log.info("%s: no validation split; %d of %d rows are held out", self.path, len(numbers), len(rows))
        return rows if numbers is None else rows.select(numbers)

    def source(self, name: str) -> Source:
        """Where the rows come from that `rows` last gave for the set."""
        return source_of(self.path, self._split(name))._replace(numbers=self._numbers.get(name))

    def read_labels(self, rows: Any, source: Source) -> Labels:
        """Words, whatever they spell; numbers in regression."""
        return read_labels(rows, source, 1, self.label_range) if self.regression else read_words(rows, source)

    def _split(self, name: str) -> str:
        """Which split the rows of a set are from."""
        if name == "test":
            alone = Path(self.path).expanduser().is_file() and self._stage() == "predict"
            return "train" if alone else "test"  # a file alone is what it is told for
        return "validation" if name == "val" and split_exists(self.path, "validation") else "train"

    def _chosen(self, rows: Any, columns: list[str]) -> Any:
        """The rows with these columns, of which the label's is called `label` then."""
        rows = rows.select_columns(columns)
        return rows if self.label not in {*columns} - {"label"} else rows.rename_column(self.label, "label")

    def _held(self, name: str, count: int) -> list[int] | None:
        """The numbers of a set's rows in its split, where the training split serves two sets; None for all."""
        if name == "test" or split_exists(self.path, "validation"):
            return None
        held = math.ceil(self.validation_fraction * count)
        if held == count:
            raise InputError(
                f"data.path: {self.path} has no validation split, and {count} training rows are too few to hold some "
                "out; give more"
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed)).tolist()
        return sorted(order[held:] if name == "train" else order[:held])

    def _trained_classes(self) -> list[str]:
        """The labels of the whole training split, those of rows held out too."""
        try:
            rows, source = read_split(self.path, "train"), source_of(self.path, "train")
            check_columns(rows, [self.label], source.name)
        except InputError as error:
            if not Path(self.path).expanduser().is_dir() or split_exists(self.path, "train"):
                raise
            raise InputError(f"{error}; or name the classes: --data.classes '[…]'") from error
        labels = read_words(self._chosen(rows, [self.label]), source)
        names = labels.distinct()
        numbers = [spelled_number(name) for name in names]
        if len(names) < 2:
            raise InputError(f"{source.name}: all its labels are {names[0]}; two classes at least are needed")
        if None not in numbers and not all(float(number).is_integer() for number in numbers if number is not None):
            raise InputError(
                f"{source.name}: its labels are numbers ({names[0]}, …); give --data.regression true, or name them as "
                "classes: --data.classes '[…]'"
            )
        return names
