"""Science questions with options: ScienceQA, without those about a picture."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from lit_spectral.datamodules.answered import AnsweredText
from lit_spectral.datamodules.columns import as_number, as_text, shown
from lit_spectral.datamodules.files import check_columns, read_split
from lit_spectral.datamodules.sources import Source, name_row, source_of

from lit_spectral.errors import InputError
from lit_spectral.scoring import Scorer, score_letter

__all__ = ["ScienceQA", "question", "questions"]

log = logging.getLogger(__name__)

LETTERS = "ABCDE"


class ScienceQA(AnsweredText):
    """ScienceQA (Lu et al., 2022): a question, at times a context, two to five options, and the right one's letter.

    Text alone: questions that come with a picture are left out, and how many is logged. Answers
    have no rationale (HiP-LoRA, App. C.1); right is whose first letter from A to E, standing by
    itself, is that of the option. Prompts are ours.

    Args:
        path: a hub id, or a folder with `train`, `validation` and `test` (jsonl, json or parquet):
            `question`, `choices` (a list), `answer` (the right one's index) and, if there are any,
            `hint` and `image`.
        max_new_tokens: as in `AnsweredText`.
        settings: of `AnsweredText`.
    """

    def __init__(self, path: str = "derek-thomas/ScienceQA", max_new_tokens: int = 8, **settings: Any) -> None:
        super().__init__(path, max_new_tokens, **settings)
        self._sources: dict[str, Source] = {}

    @property
    def test_sets(self) -> list[str]:
        """`scienceqa`."""
        return ["scienceqa"]

    @property
    def scorers(self) -> dict[str, Scorer]:
        """First letters."""
        return {"scienceqa": score_letter}

    def rows(self, split: str) -> Any:
        """Questions with options, and the right one's letter."""
        rows, self._sources[split] = questions(
            read_split(self.path, split, self.subset), source_of(self.path, split, self.subset)
        )

        def written(row: dict[str, Any]) -> dict[str, str]:
            letter = LETTERS[row["answer"]]
            return {"instruction": question(row), "input": "", "output": letter, "answer": letter}

        return rows.map(written, remove_columns=rows.column_names, desc=f"reading {split}")

    def test_rows(self, name: str) -> Any:
        """The test split."""
        return self.rows("test")

    def source(self, split: str) -> Source:
        """The split's file, of which those without a picture are used."""
        return self._sources[split]


def question(row: Mapping[str, Any]) -> str:
    """What is asked: question, context if there is one, and the options by letter."""
    hint = row.get("hint")
    context = f"Context: {hint}\n" if isinstance(hint, str) and hint.strip() else ""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=False))
    return f"Question: {row['question']}\n{context}Options: {options}\nAnswer with the letter of the right option."


def questions(rows: Any, source: Source) -> tuple[Any, Source]:
    """The rows without a picture, checked, and where they come from; how many are left out is logged.

    Without a column `image` it is all of them.

    Raises:
        InputError: a column is missing, every row has a picture, or a row, by its place in the file, is no
            question with two to five options one of which is right.
    """
    import datasets

    check_columns(rows, ["question", "choices", "answer"], source.name)
    rows = as_text(rows, ["question"], source, missing="")
    if "hint" in rows.column_names:
        rows = as_text(rows, ["hint"], source, missing="")
    numbers = list(range(len(rows)))
    if "image" in rows.column_names:
        # Pictures are not decoded, and not by `filter`, whose cache would outlive a change of the file.
        pictures = rows.with_format("arrow")[:]["image"].to_pylist()
        if isinstance(rows.features["image"], datasets.Json):
            pictures = [picture and json.loads(picture) for picture in pictures]
        numbers = [number for number, picture in enumerate(pictures) if not _is_there(picture)]
        if len(numbers) < len(rows):
            log.warning(
                "%s: %d of %d questions left out, of a picture", source.name, len(rows) - len(numbers), len(rows)
            )
        if not numbers:
            raise InputError(f"{source.name}: every question has a picture; give some without")
        rows = rows.select(numbers).remove_columns("image")
    right = []
    for number, asked, choices, answer in zip(numbers, rows["question"], rows["choices"], rows["answer"], strict=True):
        options = choices if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices) else []
        index = as_number(answer)
        if not asked.strip():
            wrong = "its question is empty"
        elif not 2 <= len(options) <= len(LETTERS):
            wrong = f"choices is {shown(choices)}, not a list of 2 to {len(LETTERS)} texts"
        elif index is None or index not in range(len(options)):
            wrong = f"answer {shown(answer)} is not the index, from 0, of one of its {len(options)} options"
        else:
            right.append(int(index))
            continue
        raise InputError(f"{name_row(source, number)}: {wrong}; mend the row or leave it out")
    return rows.remove_columns("answer").add_column("answer", right), source._replace(numbers=numbers)


def _is_there(picture: Any) -> bool:
    """Whether a cell holds a picture: not where it is null, an empty text, or a struct of nulls."""
    return any(map(bool, picture.values())) if isinstance(picture, dict) else bool(picture)
