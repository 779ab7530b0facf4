"""Columns used as text, and as numbers, whatever type they have.

Files of JSON and CSV are read as they are spelled (`files`); what Parquet and the hub hold has types. There a whole
number is written by its digits, another as `str` writes it, true and false as JSON does, a class by its name. A date,
a time, a list or an object has no one text, and is refused; a field of an object may have one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from lit_spectral.datamodules.sources import Source, name_row

from lit_spectral.errors import InputError

__all__ = ["as_number", "as_text", "short", "shown", "spelled_number", "with_fields"]

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def spelled_number(text: str) -> float | None:
    """The number that a text spells, blanks round it passed over, infinite where it is too large; None for others."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def as_number(value: Any) -> float | None:
    """The finite number that a value is or spells, blanks round it passed over; None where it is none."""
    if isinstance(value, str):
        value = spelled_number(value)
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    return float(value) if math.isfinite(value) else None


def as_text(rows: Any, columns: Sequence[str], source: Source, missing: str | None = None) -> Any:
    """The rows of a `datasets.Dataset` with these columns as text.

    Args:
        rows: with the columns.
        columns: to be used as text.
        source: where the rows come from, by which errors name them.
        missing: what stands for null and NaN; None where there must be text.

    Raises:
        InputError: a value that is no text, or missing, with its row and column.
    """
    import datasets

    order = rows.column_names
    for column in columns:
        feature = rows.features[column]
        if isinstance(feature, datasets.Value) and feature.dtype in {"string", "large_string", "string_view"}:
            cells = rows.select_columns([column]).with_format("arrow")[:].column(0)
            if not cells.null_count:
                continue
            texts = cells.to_pylist()
        elif isinstance(feature, (datasets.Value, datasets.ClassLabel, datasets.Json)):
            spell = _speller(feature)
            texts = [spell(value) for value in rows[column]]
        else:
            texts = rows.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()  # pictures stay shut
        for number, text in enumerate(texts):
            if text is None and missing is not None:
                texts[number] = missing
            elif not isinstance(text, str):
                remedy = "mend the row or leave it out" if text is None else "write it as text"
                raise InputError(f"{name_row(source, number)}: {column} is {shown(text)}, not text; {remedy}")
        # Under another name at first, since rows without a column are none.
        rows = rows.add_column(f"{column} as text", texts, feature=datasets.Value("string"))
        rows = rows.remove_columns(column).rename_column(f"{column} as text", column)
    return rows if rows.column_names == order else rows.select_columns(order)


def with_fields(rows: Any, columns: Sequence[str]) -> Any:
    """The rows, and fields of objects as columns of their own, `column.field`; null where an object lacks it."""
    import datasets

    for name in columns:
        outer, _, field = name.rpartition(".")
        feature = rows.features.get(outer)
        if name in rows.column_names or not isinstance(feature, (dict, datasets.Json)):
            continue
        kind = feature.get(field) if isinstance(feature, dict) else feature
        if kind is not None:
            cells = [cell.get(field) if isinstance(cell, dict) else None for cell in rows[outer]]
            if kind is feature:  # in which `datasets` keeps a cell as JSON
                cells = [None if cell is None else json.dumps(cell) for cell in cells]
            rows = rows.add_column(name, cells, feature=kind)
    return rows


def short(text: str, most: int = 60) -> str:
    """A text as errors show it, who are one line: cut after so many characters."""
    return text if len(text) <= most else f"{text[:most]}…"


def shown(value: Any) -> str:
    """A value as errors show it: as Python writes it, and short."""
    return short(repr(value))


def _speller(feature: Any) -> Callable[[Any], Any]:
    """What writes a value of a column as text, gives None for what is missing, and leaves what has no text."""
    import datasets
    import numpy

    if isinstance(feature, datasets.ClassLabel):
        return lambda value: None if value is None or value < 0 else feature.int2str(value)
    if isinstance(feature, datasets.Json):
        return lambda value: value
    real = numpy.dtype(feature.dtype).type if feature.dtype.startswith("float") else float

    def spell(value: Any) -> Any:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):  # in the digits that tell it from others of its own precision
            return None if math.isnan(value) else str(real(value)) if math.isfinite(value) else value
        return format(value, "f") if isinstance(value, Decimal) else str(value) if isinstance(value, int) else value

    return spell
