"""Science questions with options: ScienceQA, without those about a picture."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lit_spectral.datamodules.answered import AnsweredText
from lit_spectral.datamodules.files import check_columns, read_split

from lit_spectral.errors import InputError
from lit_spectral.scoring import Scorer, score_letter

__all__ = ["ScienceQA", "question", "without_pictures"]

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

    @property
    def test_sets(self) -> list[str]:
        """`scienceqa`."""
        return ["scienceqa"]

    @property
    def scorers(self) -> dict[str, Scorer]:
        """First letters."""
        return {"scienceqa": score_letter}

    def rows(self, split: str) -> Any:
        """Questions with options, and the right one's letter; InputError where there is no such option."""
        where = f"split {split} of {self.path}"
        rows = without_pictures(read_split(self.path, split, self.subset), where)
        for number, (choices, answer) in enumerate(zip(rows["choices"], rows["answer"], strict=True)):
            fits = isinstance(choices, list) and isinstance(answer, int)
            if not fits or not 0 <= answer < len(choices) <= len(LETTERS):
                raise InputError(
                    f"{where}, question {number} of those without a picture: answer {answer!r} is not the index of "
                    f"one of at most {len(LETTERS)} options in {choices!r}"
                )

        def written(row: dict[str, Any]) -> dict[str, str]:
            letter = LETTERS[row["answer"]]
            return {"instruction": question(row), "input": "", "output": letter, "answer": letter}

        return rows.map(written, remove_columns=rows.column_names, desc=f"reading {split}")

    def test_rows(self, name: str) -> Any:
        """The test split."""
        return self.rows("test")

    def source(self, split: str) -> tuple[str, int]:
        """By number among those without a picture."""
        return f"split {split} of {self.path}, question ", 0


def question(row: Mapping[str, Any]) -> str:
    """What is asked: question, context if there is one, and the options by letter."""
    context = f"Context: {row['hint']}\n" if row.get("hint") else ""
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=False))
    return f"Question: {row['question']}\n{context}Options: {options}\nAnswer with the letter of the right option."


def without_pictures(rows: Any, where: str) -> Any:
    """The rows whose `image` is empty; all where there is no such column. How many are left out is logged.

    Raises:
        InputError: a column is missing, or every row has a picture.
    """
    check_columns(rows, ["question", "choices", "answer"], where)
    if "image" not in rows.column_names:
        return rows
    # Pictures are not decoded, and not by `filter`, whose cache would outlive a change of the file.
    there = rows.with_format("arrow")[:]["image"].is_valid().to_pylist()
    kept = [index for index, picture in enumerate(there) if not picture]
    if len(kept) < len(rows):
        log.warning("%s: %d of %d questions left out, of a picture", where, len(rows) - len(kept), len(rows))
    if not kept:
        raise InputError(f"{where}: every question has a picture")
    return rows.select(kept).remove_columns("image")
