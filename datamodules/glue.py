"""GLUE (Wang et al., 2018): eight tasks from one table."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from lit_spectral.datamodules.files import read_split
from lit_spectral.datamodules.sentences import SentenceDataModule
from lit_spectral.datamodules.sources import Source, source_of

__all__ = ["GLUE"]


class _Task(NamedTuple):
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]


_ENTAILMENT = ("entailment", "not_entailment")
# Columns and the numbers of labels as on the hub, no names where a number is to be told; metrics as GLUE's
# leaderboard reports them, the papers' main one first.
TASKS = {
    "cola": _Task(("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    "sst2": _Task(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": _Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "qqp": _Task(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "stsb": _Task(("sentence1", "sentence2"), (), ("pearson", "spearman")),
    "mnli": _Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",)),
    "qnli": _Task(("question", "sentence"), _ENTAILMENT, ("accuracy",)),
    "rte": _Task(("sentence1", "sentence2"), _ENTAILMENT, ("accuracy",)),
}


class GLUE(SentenceDataModule):
    """One GLUE task, from the hub or from a folder with its splits.

    Args:
        task: cola, sst2, mrpc, qqp, stsb, mnli (both validation sets), qnli or rte.
        path: a folder with `train` and `validation` files (jsonl, json, parquet or csv; MNLI's are
            `validation_matched` and `validation_mismatched`), or a hub id. Labels are GLUE's numbers or
            names, such as `entailment`; or names of your own.
        settings: of `TextDataModule`.
    """

    def __init__(
        self,
        task: Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte"] = "mrpc",
        path: str = "nyu-mll/glue",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.task = task
        self.path = path
        self.text_columns, self.official_names, self.metrics = TASKS[task]
        self.num_labels = len(self.official_names) or 1
        self.label_range = (0.0, 5.0) if self.num_labels == 1 else (0, self.num_labels - 1)

    @property
    def evaluation_sets(self) -> list[str]:
        """`val`, and for MNLI `val_mismatched` beside it."""
        return ["val", "val_mismatched"] if self.task == "mnli" else ["val"]

    def rows(self, name: str) -> Any:
        """The raw rows of a split."""
        return read_split(self.path, self._split(name), self.task)

    def source(self, name: str) -> Source:
        """The split's file, or the hub's data set."""
        return source_of(self.path, self._split(name), self.task)

    def _split(self, name: str) -> str:
        matched = "_matched" if self.task == "mnli" else ""
        split = {"val": f"validation{matched}", "val_mismatched": "validation_mismatched", "test": f"test{matched}"}
        return split.get(name, name)
