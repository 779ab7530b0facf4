"""Eight commonsense sets in the form of LLM-Adapters: trained mixed, tested one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_spectral.datamodules.answered import AnsweredText
from lit_spectral.datamodules.columns import as_text, shown
from lit_spectral.datamodules.files import check_columns, read_split
from lit_spectral.datamodules.prompts import Template
from lit_spectral.datamodules.sources import Source, name_row, source_of

from lit_spectral.errors import InputError
from lit_spectral.scoring import Scorer, keyword_scorer

__all__ = ["KEYWORDS", "Commonsense"]

_CHOICES = ("answer1", "answer2", "answer3", "answer4", "answer5")
# What an answer is recognised by, under the names of LLM-Adapters' folders.
KEYWORDS = {
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "social_i_qa": _CHOICES,
    "hellaswag": ("ending1", "ending2", "ending3", "ending4"),
    "winogrande": ("option1", "option2"),
    "ARC-Easy": _CHOICES,
    "ARC-Challenge": _CHOICES,
    "openbookqa": _CHOICES,
}


class Commonsense(AnsweredText):
    """Commonsense170K (Hu et al., 2023): rows of instruction, input, output and answer, mixed from eight sets.

    120 rows of the mixture are held out to validate on. Each set is tested by its own accuracy: the
    generated text's first keyword must be the gold answer. LLM-Adapters itself searches with four
    beams (`generation: {num_beams: 4}`) and up to 32 tokens.

    Args:
        path: a folder with `train` (jsonl, json, parquet or csv), or a hub id.
        tests: a folder with a subfolder a set and `test` in it, as LLM-Adapters' `dataset`; None for `path`.
        sets: names of the sets to test on, in their order; None for all eight.
        max_new_tokens: as in `AnsweredText`.
        template: as in `PromptedText`.
        max_length: as in `PromptedText`.
        settings: of `AnsweredText`.
    """

    def __init__(
        self,
        path: str = "zwhe99/commonsense_170k",
        tests: str | None = None,
        sets: list[str] | None = None,
        max_new_tokens: int = 32,
        template: Template = "llm-adapters",
        max_length: int = 256,
        **settings: Any,
    ) -> None:
        super().__init__(path, max_new_tokens, template=template, max_length=max_length, **settings)
        self.tests = path if tests is None else tests
        self.sets = list(KEYWORDS) if sets is None else sets
        self.sets = list(dict.fromkeys(self.sets))
        unknown = [name for name in self.sets if name not in KEYWORDS]
        if not self.sets:
            raise InputError(f"data.sets: none is named; leave it out for all, or name some of {', '.join(KEYWORDS)}")
        if unknown:
            raise InputError(f"data.sets: there is no set {', '.join(unknown)}; there are {', '.join(KEYWORDS)}")

    @property
    def test_sets(self) -> list[str]:
        """The names in `sets`."""
        return self.sets

    @property
    def scorers(self) -> dict[str, Scorer]:
        """First keywords of each set."""
        return {name: keyword_scorer(KEYWORDS[name]) for name in self.sets}

    def test_rows(self, name: str) -> Any:
        """`test` in the set's subfolder; InputError where there is none."""
        if not (Path(self.tests).expanduser() / name).is_dir():
            raise InputError(
                f"data.tests: there is no folder {name} in {self.tests}; give --data.tests a copy of LLM-Adapters' "
                f"`dataset` folder, or leave the set out of --data.sets"
            )
        rows = read_split(self.tests, "test", name)
        source = self.test_source(name)
        check_columns(rows, ["answer"], source.name)
        rows = as_text(rows, ["answer"], source)
        for number, answer in enumerate(rows["answer"]):
            if answer not in KEYWORDS[name]:
                raise InputError(
                    f"{name_row(source, number)}: answer is {shown(answer)}, none of {', '.join(KEYWORDS[name])}; "
                    "mend the row or leave it out"
                )
        return rows

    def test_source(self, name: str) -> Source:
        """The set's file."""
        return source_of(self.tests, "test", name)
