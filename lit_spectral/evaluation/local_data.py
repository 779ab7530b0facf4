"""Data of this package's harness tasks, read from local folders.

The harness calls the function that a task's YAML names under `custom_dataset` with what the user
gave as `--metadata`, and with the task's own `dataset_kwargs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lit_spectral.datamodules.columns import as_text, short, shown
from lit_spectral.datamodules.files import check_columns, read_split
from lit_spectral.datamodules.prompts import TEMPLATES, Template, layout, parse
from lit_spectral.datamodules.science_qa import LETTERS, question, questions
from lit_spectral.datamodules.sources import name_row, source_of
from lit_spectral.errors import InputError

__all__ = ["commonsense", "scienceqa"]

PROMPT = "{instruction}\n"


def commonsense(subset: str, commonsense: str | None = None, prompt: str = PROMPT, **metadata: Any) -> dict[str, Any]:
    """The test split of one of the eight sets, in the form that LLM-Adapters (Hu et al., 2023) gave them.

    Args:
        subset: the set's folder, such as `boolq`.
        commonsense: the folder above it; each set is a `test` file (json, jsonl, parquet or csv) with columns
            `instruction`, which ends in `Answer format: a/b/…`, `input`, which is empty, `output` and `answer`.
        prompt: what the model is given, that of training: a name in `TEMPLATES`, such as `llm-adapters`,
            or a text with columns in braces. A text around the instruction is part of what was learned.
        metadata: meant for others.

    Returns:
        `test`: rows with `prompt`, `answer`, `choices` (the sentence for each possible answer) and
        `gold`, the index of the right one.

    Raises:
        InputError: no folder, a column that is missing, or a row whose answer is not among its choices.
    """
    import datasets

    rows = _read(commonsense, "commonsense", subset)
    source = source_of(str(Path(commonsense or "", subset)), "test")
    columns = list(dict.fromkeys(["instruction", "answer", *_columns(prompt)]))
    check_columns(rows, columns, source.name)
    rows = as_text(rows, columns, source)

    def prepare(number: int, row: dict[str, Any]) -> dict[str, Any]:
        answers = row["instruction"].rpartition("Answer format:")[2].strip().split("/")
        if row["answer"] not in answers:
            raise InputError(
                f"{name_row(source, number)}: the answer {shown(row['answer'])} is not one of the format that the "
                f"instruction ends in ({short('/'.join(answers))}); mend the row or leave it out"
            )
        given = _written(prompt, row)
        choices = [f"the correct answer is {answer}" for answer in answers]
        return {"prompt": given, "answer": row["answer"], "choices": choices, "gold": answers.index(row["answer"])}

    return {"test": datasets.Dataset.from_list([prepare(number, row) for number, row in enumerate(rows)])}


def scienceqa(scienceqa: str | None = None, prompt: str = PROMPT, **metadata: Any) -> dict[str, Any]:
    """The test questions of ScienceQA (Lu et al., 2022) that come without a picture.

    Args:
        scienceqa: a folder with a `test` file with columns `question`, `choices`, `answer` (the
            index of the right choice), and, if there are any, `hint` and `image`.
        prompt: as in `commonsense`; `{instruction}` holds question, context and options.
        metadata: meant for others.

    Returns:
        `test`: rows with `prompt`, `choices` (letters) and `answer`, the index of the right one.

    Raises:
        InputError: no folder; as in `questions`.
    """
    import datasets

    rows, _ = questions(_read(scienceqa, "scienceqa"), source_of(scienceqa or "", "test"))
    others = {*_columns(prompt)} - {"instruction"}
    if others:
        raise InputError(f"metadata prompt: {prompt!r}: there is no column {others.pop()}; there is instruction")

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        given = _written(prompt, {"instruction": question(row)})
        return {"prompt": given, "choices": list(LETTERS[: len(row["choices"])]), "answer": row["answer"]}

    return {"test": datasets.Dataset.from_list([prepare(row) for row in rows])}


def _columns(prompt: str) -> list[str]:
    """The columns that a prompt is written of."""
    if prompt in TEMPLATES:
        return ["instruction"]
    return [column for _, column in parse("metadata prompt", prompt) if column]


def _written(prompt: str, row: Mapping[str, Any]) -> str:
    if prompt in TEMPLATES:
        return layout(cast(Template, prompt), None)(row["instruction"], "", "")[0]
    return "".join(literal + (row[column] if column else "") for literal, column in parse("metadata prompt", prompt))


def _read(path: str | None, key: str, subset: str | None = None) -> Any:
    if path is None:
        raise InputError(f"tasks: {key} reads a local folder; give it as --metadata {key}=FOLDER")
    folder = Path(path, subset or "").expanduser()
    if not folder.is_dir():
        raise InputError(f"metadata {key}: there is no folder {folder}")
    return read_split(str(folder), "test")
