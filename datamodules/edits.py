"""Facts to be changed: prompts with the answer that a model gives and the one that it is to give."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

from lit_spectral.datamodules.columns import as_text, with_fields
from lit_spectral.datamodules.files import check_columns, read_rows, read_split, split_exists
from lit_spectral.datamodules.prompted import PromptedText
from lit_spectral.datamodules.prompts import Template, layout, parse
from lit_spectral.datamodules.sources import Source, name_row, source_of, source_of_file

from lit_spectral.errors import InputError, check_at_least, nearest
from lit_spectral.scoring.answers import words

__all__ = ["Edit", "Edits", "Probe"]

log = logging.getLogger(__name__)


class Edit(NamedTuple):
    """A fact that is to be changed: what is asked, what a model says, what it is to say, and of which kind it is."""

    prompt: str
    old: str
    new: str
    category: str


class Probe(NamedTuple):
    """A question whose answer is to stay; `answer` is empty where it is what the backbone says first."""

    prompt: str
    answer: str
    category: str


class Edits(PromptedText):
    """Edits of facts (HiP-LoRA, appendix C.4): trains on a prompt and its new answer, which alone is scored.

    A part of the set is trained on, `count` edits from number `first` on, and validated on too: `val/loss` says how
    well these are learned. What else they change is what `lit-spectral edit` measures. Of a list in a column the first
    entry counts, since some sets list answers of one meaning.

    Args:
        path: a folder with `train`, or one file (jsonl, json, parquet or csv), here or on the hub (`hf://datasets/…`),
            or a hub id.
        prompt: what is asked, written from columns.
        old: what a model answers; never trained on.
        new: what it is to answer.
        category: of which kind the fact is; empty for sets that have no kinds.
        categories: which are used; None for all.
        unusable: a row without a prompt or an answer, or with the old answer for its new one, is an `error`, or left
            out by `skip`, and counted.
        first: how many edits are passed over, of those that are used.
        count: how many are trained on; None for all.
        unrelated: prompts whose answers are to stay, as `path`: columns that `prompt` names and, if there are any,
            those of `answer` and `category`. None for the folder's `unrelated`; where there is none, for facts of the
            set that aren't edited, answered by `old`.
        answer: of the unrelated prompts; empty, or a column that isn't there, for what the backbone says first.
        subset: as in `PromptedText`.
        template: as in `PromptedText`.
        batch_size: rows of a training batch.
        max_length: tokens above which a prompt with its answer is an error, since half an edit is another one.
        settings: of `TextDataModule`.
    """

    def __init__(
        self,
        path: str,
        prompt: str = "{prompt}",
        old: str = " {old}",
        new: str = " {new}",
        category: str = "{category}",
        categories: list[str] | None = None,
        unusable: Literal["error", "skip"] = "error",
        first: int = 0,
        count: int | None = None,
        unrelated: str | None = None,
        answer: str = " {answer}",
        subset: str | None = None,
        template: Template = "plain",
        batch_size: int = 16,
        max_length: int = 256,
        **settings: Any,
    ) -> None:
        # What an edit leaves no choice in is spelled out, or the parser would take it for a setting.
        super().__init__(
            path,
            "{prompt}",
            "{new}",
            input="",
            template=template,
            loss_on="answer",
            packing=False,
            too_long="error",
            max_characters=None,
            empty_answer="error",
            subset=subset,
            validation_rows=1,
            batch_size=batch_size,
            max_length=max_length,
            **settings,
        )
        check_at_least(0, first=first)
        check_at_least(1, count=count)
        self.categories = categories
        self.unusable = unusable
        self.first = first
        self.count = count
        self.unrelated = unrelated
        self._written = {"prompt": prompt, "old": old, "new": new, "category": category, "answer": answer}
        for name, text in self._written.items():
            if not isinstance(text, str):
                raise InputError(f"data.{name}: {text!r} is no text; write one with columns in braces, as '{{{name}}}'")
            if name in {"prompt", "old", "new"} and not any(column for _, column in parse(f"data.{name}", text)):
                raise InputError(f"data.{name}: {text!r} names no column; write one in braces, as in '{{{name}}}'")

    def edits(self, first: int = 0, count: int | None = None) -> list[Edit]:
        """Edits of the set in the order of its rows, of those that are used.

        Args:
            first: how many are passed over.
            count: how many; None for all behind those.

        Raises:
            InputError: rows that can't be read, lack a column or a text; a category that no row has; an edit that is
                unusable, and not to be skipped; no edit from `first` on.
        """
        every, source = self._set
        if first >= len(every):
            raise InputError(f"data.first: {source.name} has {len(every)} edits, and none behind {first}; give less")
        chosen = every[first : None if count is None else first + count]
        for number, edit in enumerate(chosen, first):
            if trouble := _trouble(edit):
                raise InputError(f"{name_row(source, number)}: {trouble}; mend the row, or give --data.unusable skip")
        return chosen

    def probes(self, edited: int, most: int) -> list[Probe]:
        """Prompts whose answers are to stay, so many at most; InputError as `edits`.

        Args:
            edited: how many edits from the set's start are made, so that those behind them aren't.
            most: prompts.
        """
        path = self.unrelated
        if path is not None:
            rows, source = _read(path, "train", None)
        elif not self.path.startswith("hf://") and split_exists(self.path, "unrelated", self.subset):
            rows, source = _read(self.path, "unrelated", self.subset)
        else:
            rest = self.edits(edited, most) if edited < len(self._set[0]) else []
            return [Probe(edit.prompt, edit.old, edit.category) for edit in rest]
        rows = rows.select(range(min(most, len(rows))))
        texts = {name: self._column(name, rows, source, needed=name == "prompt") for name in Probe._fields}
        return [Probe(*row) for row in zip(*texts.values(), strict=True)]

    def laid_out(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of what is given and of what is said, as they are trained on but for the EOS behind them."""
        given, said = layout(self.template, self.tokenizer)(prompt, "", answer)
        ids: list[list[int]] = self.tokenizer([given, said], add_special_tokens=False, verbose=False)["input_ids"]
        opening = [] if self.template.startswith("chat") else self._opening
        return [*opening, *ids[0]], ids[1]

    def has_validation(self) -> bool:
        """They are validated on what they are trained on."""
        return True

    def rows(self, split: str) -> Any:
        """The edits to train on, with the columns of `Edit`."""
        import datasets

        return datasets.Dataset.from_list([edit._asdict() for edit in self.edits(self.first, self.count)])

    def source(self, split: str) -> Source:
        """Where those come from."""
        source = self._set[1]
        assert source.numbers is not None
        return source._replace(numbers=source.numbers[self.first :])

    @cached_property
    def _set(self) -> tuple[list[Edit], Source]:
        """All edits that are used, and where they come from."""
        rows, source = _read(self.path, "train", self.subset)
        texts = {name: self._column(name, rows, source) for name in Edit._fields}
        every = [Edit(*row) for row in zip(*texts.values(), strict=True)]
        for name in self.categories or ():
            if name not in texts["category"]:
                raise InputError(
                    f"data.categories: {source.name} has no category {name}{nearest(name, texts['category'])}"
                )
        used = [n for n, edit in enumerate(every) if self.categories is None or edit.category in self.categories]
        if self.unusable == "skip":
            sound = [number for number in used if not _trouble(every[number])]
            if len(sound) < len(used):
                log.warning("%s: %d of %d edits left out, as unusable", source.name, len(used) - len(sound), len(used))
            used = sound
        if not used:
            raise InputError(f"data.path: no edit of {source.name} can be used; give others")
        return [every[number] for number in used], source._replace(numbers=used)

    def _column(self, name: str, rows: Any, source: Source, needed: bool = True) -> list[str]:
        """A text for each row; empty ones where a column isn't there and isn't needed."""
        parts = parse(f"data.{name}", self._written[name])
        columns = list(dict.fromkeys(column for _, column in parts if column))
        rows = with_fields(_first_of_lists(rows, columns), columns)
        if not needed and not {*columns} <= {*rows.column_names}:
            return [""] * len(rows)
        check_columns(rows, columns, source.name)
        cells = as_text(rows, columns, source, missing="" if self.unusable == "skip" else None)
        texts = {column: cells[column] for column in columns}
        return [
            "".join(literal + (texts[column][n] if column else "") for literal, column in parts)
            for n in range(len(rows))
        ]


def _trouble(edit: Edit) -> str | None:
    """Why an edit can't be made; None where it can."""
    if not edit.prompt.strip():
        return "the prompt is empty"
    for name, text in (("old", edit.old), ("new", edit.new)):
        if not words(text):
            return f"the {name} answer is empty, or has neither letter nor digit"
    return f"old and new are one answer, {edit.new.strip()!r}" if words(edit.old) == words(edit.new) else None


def _read(path: str, split: str, subset: str | None) -> tuple[Any, Source]:
    if path.startswith("hf://"):
        return read_rows(path), source_of_file(path)
    return read_split(path, split, subset), source_of(path, split, subset)


def _first_of_lists(rows: Any, columns: Sequence[str]) -> Any:
    """The rows, with the first entry of a list in its place, or a field of it; null for an empty one."""
    import datasets

    for name in columns:
        column, _, field = name.partition(".") if name not in rows.column_names else (name, "", "")
        if not isinstance(rows.features.get(column), (datasets.List, datasets.Json)):
            continue
        if not any(isinstance(cell, list) for cell in rows[column]):
            continue
        cells = [(cell or [None])[0] if isinstance(cell, list) else cell for cell in rows[column]]
        cells = [cell.get(field) if field and isinstance(cell, dict) else cell for cell in cells]
        if all(cell is None or isinstance(cell, str) for cell in cells):
            rows = rows.remove_columns(name) if name in rows.column_names else rows
            rows = rows.add_column(name, cells, feature=datasets.Value("string"))
    return rows
