"""Prompts whose answers are generated: what data sets evaluated by generation share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from pathlib import Path
from typing import Any

from lit_spectral.datamodules.columns import as_text
from lit_spectral.datamodules.files import check_columns
from lit_spectral.datamodules.prompted import PromptedText
from lit_spectral.datamodules.prompts import Template
from lit_spectral.datamodules.sources import Source
from torch.utils.data import DataLoader

from lit_spectral.errors import InputError, check_at_least
from lit_spectral.generation import pad_left
from lit_spectral.scoring import Scorer

__all__ = ["AnsweredText"]

log = logging.getLogger(__name__)


class AnsweredText(PromptedText):
    """Trains as `PromptedText` does, and is tested set by set: answers are generated, and scored.

    A subclass gives `rows`, whose columns are `instruction`, `input` and `output`; `test_sets` and
    `test_rows`, whose columns are `instruction`, `input` and `answer`, the gold one; and `scorers`,
    or `score_answers` where a set is not scored answer by answer.

    Args:
        path: where the rows to train on are.
        max_new_tokens: after which a generated answer is cut off.
        limit: rows of each test set, from its start; None for all.
        generation: further settings of transformers' `GenerationConfig`, such as `{num_beams: 4}`; greedy without.
        template: as in `PromptedText`.
        prompt: what is given, written from `{instruction}`, to train on and to be tested alike.
        settings: of `PromptedText`. A prompt to answer that is longer than `max_length` loses its
            beginning, and is counted.
    """

    def __init__(
        self,
        path: str,
        max_new_tokens: int = 512,
        limit: int | None = None,
        generation: dict[str, Any] | None = None,
        template: Template = "alpaca",
        prompt: str = "{instruction}",
        **settings: Any,
    ) -> None:
        super().__init__(path, prompt, answer="{output}", input="{input}", template=template, **settings)
        check_at_least(1, max_new_tokens=max_new_tokens, limit=limit)
        self.max_new_tokens = max_new_tokens
        self.limit = limit
        self.generation = generation

    @property
    @abstractmethod
    def test_sets(self) -> list[str]:
        """Names under which the test sets are logged."""

    @property
    def scorers(self) -> dict[str, Scorer]:
        """For each test set, what compares a generated text with the gold answer."""
        return {}

    @abstractmethod
    def test_rows(self, name: str) -> Any:
        """The raw rows of a test set."""

    def test_source(self, name: str) -> Source:
        """Where those come from; a subclass that gives them as they are in a file says which."""
        return Source(f"test set {name}")

    def test_limit(self, name: str) -> int | None:
        """Rows of a test set to answer, from its start; None for all."""
        return self.limit

    def test_template(self, name: str) -> Template:
        """How the prompts of a test set are laid out; as those to train on, unless a subclass says otherwise."""
        return self.template

    def test_generation(self, name: str) -> dict[str, Any]:
        """Settings of transformers' `GenerationConfig` for a test set."""
        return self.generation or {}

    def score_answers(self, name: str, answers: list[dict[str, Any]], folder: Path | None) -> dict[str, float]:
        """Metrics of a test set, to be logged under its name.

        Args:
            name: of the set.
            answers: all of them, in the order of the rows, with `row`, `prompt`, `gold` and `text`,
                what was generated; `correct` is added to each.
            folder: where the run keeps what it generated; None where it keeps nothing.
        """
        for answer in answers:
            answer["correct"] = self.scorers[name](answer["text"], answer["gold"])
        return {"accuracy": sum(answer["correct"] for answer in answers) / len(answers)}

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
        rows = rows.select(range(min(len(rows), self.test_limit(name) or len(rows))))
        source = self.test_source(name)
        check_columns(rows, ["answer"], source.name)
        rows = as_text(rows, ["answer"], source)
        rows, write, bos, _ = self._writer(rows, ("prompt", "input"), self.test_template(name), source)
        # What is generated must fit behind the prompt.
        longest = min(self.max_length, int(self.tokenizer.model_max_length) - self.max_new_tokens)
        if longest < 2:
            raise InputError(
                f"data.max_new_tokens: {self.max_new_tokens} leave no room for a prompt in the "
                f"{self.tokenizer.model_max_length} tokens that the model reads"
            )
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
