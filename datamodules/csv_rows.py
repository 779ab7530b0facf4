"""CSV as text: pandas makes numbers of 003, and nothing of None or n/a; and what is wrong with a file, by its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lit_spectral.errors import InputError

__all__ = ["fault", "records", "text_options"]

_AS_SPELLED = {"keep_default_na": False}


def text_options(files: Sequence[Path]) -> dict[str, Any]:
    """Options of pandas with which files are read as they are spelled.

    Raises:
        InputError: a header that has a column twice, a first row with more fields than the header, or files whose
            columns differ.
    """
    import datasets
    import pandas

    heads = [pandas.read_csv(file, dtype=str, nrows=1, **_AS_SPELLED) for file in files]
    for file, head in zip(files, heads, strict=True):
        line, header = next(records(file))
        # pandas calls the second a.1, and datasets would drop it.
        twice = next((name for name in header if name and header.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{file}, line {line} can't be read: it names column {twice!r} twice; rename one")
        if not isinstance(head.index, pandas.RangeIndex):  # it takes what is too much for names of rows
            raise _too_wide(file)
        if set(head.columns) != set(heads[0].columns):
            raise InputError(
                f"{file} can't be read: its columns are others than those of {files[0]}; give both the same header"
            )
    return _AS_SPELLED | {"features": datasets.Features(dict.fromkeys(heads[0].columns, datasets.Value("string")))}


def records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The header and the rows that pandas finds in a file: the line that each begins on, from 1, and its fields."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            read: list[str] = []  # the lines of a record
            first = 1
            for fields in csv.reader(_noted(lines, read)):
                if "".join(read).strip(" \t\r\n"):  # blank lines are no rows, quoted blanks are
                    yield first, fields
                first += len(read)
                read.clear()
    finally:
        csv.field_size_limit(limit)


def fault(file: Path) -> InputError | None:
    """What is wrong with a file that pandas can't parse, and on which line; None where it can."""
    import pandas

    try:
        pandas.read_csv(file, dtype=str, **_AS_SPELLED)
    except pandas.errors.ParserError as error:
        if "EOF inside string" not in str(error):
            return _too_wide(file)
        *_, (line, _fields) = records(file)
        return InputError(f"{file}, line {line} can't be read: a quote opens in this row and never closes; mend it")
    return None


def _noted(lines: Iterator[str], read: list[str]) -> Iterator[str]:
    """The same, and each is put into a list when it is asked for."""
    for line in lines:
        read.append(line)
        yield line


def _too_wide(file: Path) -> InputError:
    """The error for the first row with more fields than the header."""
    _, header = next(records(file))
    for line, fields in islice(records(file), 1, None):
        if len(fields) > len(header):
            return InputError(
                f"{file}, line {line} can't be read: it has {len(fields)} fields, and the header {len(header)}; "
                "put quotes round a text with commas"
            )
    return InputError(f"{file} can't be read: it is no table of {len(header)} columns; export it anew as CSV")
