"""Prompts whose answers are generated and scored: what data sets evaluated by generation share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any, Literal

from lit_spectral.datamodules.files import check_columns
from lit_spectral.datamodules.prompted import PromptedText
from lit_spectral.datamodules.prompts import Template
from torch.utils.data import DataLoader

from lit_spectral.errors import InputError
from lit_spectral.generation import pad_left
from lit_spectral.scoring import Scorer

__all__ = ["AnsweredText"]

log = logging.getLogger(__name__)


class AnsweredText(PromptedText):
    """Trains as `PromptedText` does, and is tested set by set: answers are generated, and compared with gold ones.

    A subclass gives `rows`, whose columns are `instruction`, `input` and `output`; `test_sets`,
    `test_rows`, whose columns are `instruction`, `input` and `answer`, the gold one; and `scorers`.

    Args:
        path: where the rows to train on are.
        max_new_tokens: after which a generated answer is cut off.
        limit: rows of each test set, from its start; None for all.
        generation: further settings of transformers' `GenerationConfig`, such as `{num_beams: 4}`; greedy without.
        template: as in `PromptedText`.
        loss_on: as in `PromptedText`.
        packing: as in `PromptedText`.
        too_long: as in `PromptedText`.
        empty_answer: as in `PromptedText`.
        validation_rows: as in `PromptedText`.
        batch_size: as in `PromptedText`.
        eval_batch_size: as in `PromptedText`; of prompts, too.
        max_length: as in `PromptedText`; a prompt to answer that is longer loses its beginning, and is counted.
        tokenizer: as in `PromptedText`.
        num_workers: as in `PromptedText`.
        seed: as in `PromptedText`.
    """

    def __init__(
        self,
        path: str,
        max_new_tokens: int,
        limit: int | None,
        generation: dict[str, Any] | None,
        template: Template,
        loss_on: Literal["answer", "all"],
        packing: bool,
        too_long: Literal["cut", "skip", "error"],
        empty_answer: Literal["error", "skip"],
        validation_rows: int,
        batch_size: int,
        eval_batch_size: int | None,
        max_length: int,
        tokenizer: str | None,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__(
            path,
            prompt="{instruction}",
            answer="{output}",
            input="{input}",
            template=template,
            loss_on=loss_on,
            packing=packing,
            too_long=too_long,
            empty_answer=empty_answer,
            validation_rows=validation_rows,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            max_length=max_length,
            tokenizer=tokenizer,
            num_workers=num_workers,
            seed=seed,
        )
        if max_new_tokens < 1 or (limit is not None and limit < 1):
            raise InputError(f"max_new_tokens and limit are at least 1, not {max_new_tokens} and {limit}")
        self.max_new_tokens = max_new_tokens
        self.limit = limit
        self.generation = generation

    @property
    @abstractmethod
    def test_sets(self) -> list[str]:
        """Names under which the test sets are logged."""

    @property
    @abstractmethod
    def scorers(self) -> dict[str, Scorer]:
        """For each test set, what compares a generated text with the gold answer."""

    @abstractmethod
    def test_rows(self, name: str) -> Any:
        """The raw rows of a test set."""

    def tokenised(self, name: str) -> Any:
        """Rows to train on, or, of a test set, `input_ids` of what is given, and `gold`, `prompt` and `row`."""
        return self._prompts(name) if name in self.test_sets else super().tokenised(name)

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a test set."""
        return [self._loader(name, self.eval_batch_size, shuffle=False) for name in self.test_sets]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a test set, in the order of its rows."""
        return [
            DataLoader(self.splits[name], batch_size=self.eval_batch_size, collate_fn=self.collate)
            for name in self.test_sets
        ]

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """Rows to train on as in `PromptedText`; prompts padded on the left, their texts in lists."""
        if "gold" not in rows[0]:
            return super().collate(rows)
        batch: dict[str, Any] = dict(pad_left([row["input_ids"] for row in rows], self.tokenizer.pad_token_id))
        return batch | {name: [row[name] for row in rows] for name in ("gold", "prompt", "row")}

    def _names(self, stage: str) -> list[str]:
        return super()._names(stage) if stage in {"fit", "validate"} else self.test_sets

    def _prompts(self, name: str) -> Any:
        rows = self.test_rows(name)
        rows = rows.select(range(min(len(rows), self.limit or len(rows))))
        write, bos, _ = self._writer(rows, f"test set {name}", ("prompt", "input"))
        # What is generated must fit behind the prompt.
        longest = min(self.max_length, int(self.tokenizer.model_max_length) - self.max_new_tokens)
        if longest < 2:
            raise InputError(
                f"data.max_new_tokens: {self.max_new_tokens} leave no room for a prompt in the "
                f"{self.tokenizer.model_max_length} tokens that the model reads"
            )
        check_columns(rows, ["answer"], f"test set {name}")
        tokenizer = self.tokenizer

        def encode(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
            prompts = [write(batch, i)[0] for i in range(len(numbers))]
            ids = tokenizer(prompts, add_special_tokens=False, verbose=False)["input_ids"]
            room = longest - len(bos)
            return {
                "input_ids": [[*bos, *row[max(0, len(row) - room) :]] for row in ids],
                "gold": batch["answer"],
                "prompt": prompts,
                "row": numbers,
                "cut": [len(row) > room for row in ids],
            }

        options = {"batched": True, "with_indices": True, "remove_columns": rows.column_names}
        encoded = rows.map(encode, desc=f"tokenising {name}", **options)
        if cut := sum(encoded["cut"]):
            log.warning("%s: %d of %d prompts cut to %d tokens", name, cut, len(encoded), longest)
        return encoded
