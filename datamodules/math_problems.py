"""Mathematics in words: trained on GSM8K, MetaMathQA or MATH, tested on GSM8K and MATH."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from lit_spectral.datamodules.answered import AnsweredText
from lit_spectral.datamodules.columns import as_text
from lit_spectral.datamodules.files import check_columns, read_split
from lit_spectral.datamodules.sources import Source, name_row, source_of

from lit_spectral.errors import InputError
from lit_spectral.scoring import Scorer, score_mathematics, score_number
from lit_spectral.scoring.answers import boxed, final_answer, score_marked

__all__ = ["Math"]

# Columns of problem and solution, as published.
COLUMNS = {"gsm8k": ("question", "answer"), "metamath": ("query", "response"), "math": ("problem", "solution")}
HUB = {"gsm8k": "openai/gsm8k", "metamath": "meta-math/MetaMathQA", "math": "EleutherAI/hendrycks_math"}
# The parts of each on the hub.
PARTS: dict[str, list[str | None]] = {
    "gsm8k": ["main"],
    "metamath": [None],
    "math": [
        "algebra",
        "counting_and_probability",
        "geometry",
        "intermediate_algebra",
        "number_theory",
        "prealgebra",
        "precalculus",
    ],
}


class Math(AnsweredText):
    r"""GSM8K (Cobbe et al., 2021), MetaMathQA (Yu et al., 2023) and MATH (Hendrycks et al., 2021).

    With `reasoning`, solutions are learned whole (GSM8K's without the calculator's notes, `<<…>>`)
    and the answer is read off the generated text's end: GSM8K's after `####` or `The answer is`,
    else the last number; MATH's from the last `\boxed{…}` or after `The answer is`. Without, final
    answers alone are learned, and the text is taken for the answer: GSM8K's first number. A GSM8K
    answer is right when the number is; a MATH answer by `lit_spectral.scoring.answers.same_mathematics`.

    Args:
        train_on: which of the three the training rows are; it names their columns.
        path: a folder with `train`, or a hub id; None for the set's own on the hub.
        gsm8k: where the test split of GSM8K is, a folder or hub id.
        math: where that of MATH is. Without either, `path` is tested on; MetaMathQA, which has no
            test split, by both sets on the hub.
        reasoning: chain of thought, or answers alone.
        strict: a GSM8K answer counts only behind its mark, and as a number and nothing else
            (`lit_spectral.scoring.answers.score_marked`), as in peft's comparison.
        settings: of `AnsweredText`.
    """

    def __init__(
        self,
        train_on: Literal["gsm8k", "metamath", "math"] = "gsm8k",
        path: str | None = None,
        gsm8k: str | None = None,
        math: str | None = None,
        reasoning: bool = True,
        strict: bool = False,
        **settings: Any,
    ) -> None:
        path = HUB[train_on] if path is None else path
        super().__init__(path, **settings)
        self.subset = PARTS[train_on][0]  # any part tells which splits there are
        self.train_on = train_on
        self.reasoning = reasoning
        self.strict = strict
        if strict and not reasoning:
            raise InputError("data.strict: answers without reasoning have no mark; leave one of the two out")
        given = {name: where for name, where in (("gsm8k", gsm8k), ("math", math)) if where is not None}
        own = {"gsm8k": HUB["gsm8k"], "math": HUB["math"]} if train_on == "metamath" else {str(train_on): path}
        self.tests: dict[str, str] = given or own

    @property
    def test_sets(self) -> list[str]:
        """`gsm8k`, `math` or both."""
        return list(self.tests)

    @property
    def scorers(self) -> dict[str, Scorer]:
        """Numbers for GSM8K, LaTeX for MATH."""
        number = score_marked if self.strict else score_number(self.reasoning)
        rules = {"gsm8k": number, "math": score_mathematics}
        return {name: rules[name] for name in self.tests}

    def rows(self, split: str) -> Any:
        """Problems, and solutions or answers; an answer that can't be found is empty."""
        return _read(self.train_on, self.path, split, self.reasoning)

    def test_rows(self, name: str) -> Any:
        """Problems and gold answers; InputError where one can't be found."""
        rows = _read(name, self.tests[name], "test", self.reasoning)
        for number, answer in enumerate(rows["answer"]):
            if not answer:
                row = name_row(_source(name, self.tests[name], "test"), number)
                raise InputError(f"{row}: its solution holds no final answer; mend the row or leave it out")
        return rows

    def source(self, split: str) -> Source:
        """The split's file, or those of its parts."""
        return _source(self.train_on, self.path, split)


def _parts(name: str, path: str) -> list[str | None]:
    """A clone of the hub's set has its parts in folders; a plain folder has none."""
    folder = Path(path).expanduser()
    return [part for part in PARTS[name] if not folder.is_dir() or (part and (folder / part).is_dir())] or [None]


def _source(name: str, path: str, split: str) -> Source:
    sources = [source_of(path, split, part) for part in _parts(name, path)]
    files = tuple(file for source in sources for file in source.files)
    return sources[0] if len(sources) == 1 else Source(f"split {split} of {path}", files)


def _read(name: str, path: str, split: str, reasoning: bool) -> Any:
    """A split with the columns instruction, input, output and answer."""
    import datasets

    rows = datasets.concatenate_datasets([read_split(path, split, part) for part in _parts(name, path)])
    problem, solution = COLUMNS[name]
    source = _source(name, path, split)
    check_columns(rows, [problem, solution], source.name)
    rows = as_text(rows, [problem, solution], source)

    def written(row: dict[str, str]) -> dict[str, str]:
        text = row[solution]
        answer = (boxed(text) if name == "math" else final_answer(text)) or ""
        output = re.sub(r"<<.*?>>", "", text) if name == "gsm8k" else text
        return {
            "instruction": row[problem],
            "input": "",
            "output": output if reasoning else answer,
            "answer": answer,
        }

    return rows.map(written, remove_columns=rows.column_names, desc=f"reading {name} {split}")
