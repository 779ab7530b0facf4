"""Labels of sentences: numbers, or the names of classes, and which number each name has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_spectral.datamodules.columns import as_text, short, shown, spelled_number
from lit_spectral.datamodules.sources import Source, name_row

from lit_spectral.errors import InputError

__all__ = ["Labels", "read_labels", "read_words"]


class Labels(NamedTuple):
    """The labels of one set.

    Attributes:
        source: where they come from, by which errors name them.
        numbers: one a row; None where the labels are words.
        words: one a row, without blanks round them; None where the labels are numbers.
        own_names: the classes of a column that names them (`ClassLabel`), by its own numbers.
    """

    source: Source
    numbers: list[float] | None = None
    words: list[str] | None = None
    own_names: list[str] | None = None

    def are(self, names: Sequence[str]) -> bool:
        """Whether they are words, and each is one of these names."""
        known = _table(names)
        return self.words is not None and all(word in known or word.casefold() in known for word in {*self.words})

    def names(self, classes: int, official: Sequence[str]) -> list[str]:
        """The classes by their numbers, as these labels give them.

        A column's own; the official ones for numbers, or for words that are all among them; for other
        words those, sorted. A word in capitals is the same word.

        Raises:
            InputError: as many names as there are no classes.
        """
        if self.words is None:
            return list(official) or [str(number) for number in range(classes)]
        names = self.own_names
        if names is None:
            if self.are(official):
                return list(official)
            names = self.distinct()
        if len(names) != classes:
            listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
            raise InputError(
                f"{self.source.name}: its labels are {len(names)} words ({short(listed)}), and there are {classes} "
                "classes; write as many"
            )
        return names

    def distinct(self) -> list[str]:
        """The words, sorted, those that spell numbers by their size; of several spellings of one word the first."""
        words = {word.casefold(): word for word in sorted({*(self.words or ())}, reverse=True)}.values()
        return sorted(words, key=lambda word: (spelled_number(word) or 0, word))

    def numbered(self, names: Sequence[str], official: Sequence[str]) -> list[int]:
        """The number of each label's class.

        Args:
            names: of the classes by their numbers, whoever gave them.
            official: names whose numbers everybody knows, so that numbers can stand for them.

        Raises:
            InputError: a word that is no class, by its row; numbers where classes have names that aren't official.
        """
        by_number = [str(number) for number in range(len(names))]
        if self.words is None:
            if list(names) not in ([*official], by_number):
                raise InputError(
                    f"{self.source.name}: its labels are numbers, and the classes are called {', '.join(names)}; "
                    "write their names"
                )
            return [int(number) for number in self.numbers or ()]
        # Where nobody has named the classes, a column's own numbers are theirs.
        table = _table(self.own_names if self.own_names and list(names) == by_number else names)
        number_of = {word: table.get(word, table.get(word.casefold())) for word in {*self.words}}
        found = [number_of[word] for word in self.words]
        if None in found:
            row = found.index(None)
            raise InputError(
                f"{name_row(self.source, row)}: label {shown(self.words[row])} is none of those trained on: "
                f"{short(', '.join(names))}; mend the row or leave it out"
            )
        return [number for number in found if number is not None]


def read_labels(rows: Any, source: Source, classes: int, label_range: tuple[float, float]) -> Labels:
    """The column `label` of a `datasets.Dataset`; numbers may be spelled.

    Args:
        rows: with the column.
        source: where they come from, by which errors name them.
        classes: how many there are; 1 for regression.
        label_range: smallest and largest number allowed.

    Raises:
        InputError: no label, a number outside the range or between classes, words among numbers, words in
            regression, or labels that are hidden, all -1; with the row.
    """
    import datasets

    feature = rows.features["label"]
    if isinstance(feature, datasets.ClassLabel) and classes > 1:
        texts = ["" if label is None else str(label) for label in rows["label"]]
    else:
        texts = [text.strip() for text in as_text(rows, ["label"], source, missing="")["label"]]
    number_of = {text: spelled_number(text) for text in {*texts}}
    numbers = [number_of[text] for text in texts]
    if label_range[0] >= 0 and set(number_of.values()) == {-1}:
        raise InputError(f"{source.name}: every label is -1, so they are hidden; use validate or predict")
    words = classes > 1 and numbers[0] is None
    for row, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        wrong = _wrong(text, number, words, classes, label_range)
        if wrong is not None:
            raise InputError(f"{name_row(source, row)}: {wrong}")
    if words:
        return Labels(source, words=texts)
    if isinstance(feature, datasets.ClassLabel) and feature.names != [str(i) for i in range(feature.num_classes)]:
        return Labels(source, words=[feature.names[int(text)] for text in texts], own_names=feature.names)
    return Labels(source, numbers=[number for number in numbers if number is not None])


def read_words(rows: Any, source: Source) -> Labels:
    """The column `label` of a `datasets.Dataset`, of which each text is a class, those that spell numbers too.

    Raises:
        InputError: no label, or one that is no text, with the row.
    """
    words = [text.strip() for text in as_text(rows, ["label"], source, missing="")["label"]]
    if "" in words:
        raise InputError(f"{name_row(source, words.index(''))}: its label is empty; mend the row or leave it out")
    return Labels(source, words=words)


def _wrong(text: str, number: float | None, words: bool, classes: int, label_range: tuple[float, float]) -> str | None:
    """What is wrong with a label among words or numbers, and the remedy; None where nothing is."""
    low, high = label_range
    mend = "mend the row or leave it out"
    if not text:
        return f"its label is empty; {mend}"
    if (number is None) != words:
        if classes == 1:
            return f"label {shown(text)} is no number; {mend}"
        kinds = ("number", "word") if words else ("word", "number")
        return (
            f"label {shown(text)} is a {kinds[0]}, and the first row's a {kinds[1]}; write all as numbers or as names"
        )
    if number is None:
        return None
    if math.isinf(number) or not low <= number <= high:
        limits = f"outside {low:g} to {high:g}" if math.isfinite(high) else "too large"
        return f"label {short(text)} is {limits}; {mend}"
    if classes > 1 and number != int(number):
        return f"label {short(text)} is no class, which has a whole number; {mend}"
    return None


def _table(names: Sequence[str]) -> dict[str, int]:
    """From a name to its number, and from a name in small letters where it is the only one spelled so."""
    small = [name.casefold() for name in names]
    table = {name: number for number, name in enumerate(small) if small.count(name) == 1}
    return table | {name: number for number, name in enumerate(names)}
