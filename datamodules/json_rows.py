"""Rows of JSON as text: every value as its file spells it, and no date or number made of it.

The JSON reader of `datasets` takes texts such as 2024-01-05 for times and 1.10 for 1.1, and has no way to be told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from lit_spectral.errors import InputError

__all__ = ["count_document", "read_json"]


def read_json(files: Sequence[Path], name: str, field: str | None, digest: str) -> Any:
    """Files of JSON lines, of a list of objects or of texts, or of one object, as a `datasets.Dataset` on disk.

    Texts are what they are, numbers and booleans as they are spelled, null and NaN are None. A column with
    lists or objects holds them, and within them likewise texts alone. A list of texts is a column `text`.

    Args:
        files: in the order of their rows.
        name: what errors call them together.
        field: the key of a JSON object under which the rows are.
        digest: of what the files hold; rows are read once for each.

    Raises:
        InputError: a line that is no JSON or no object, a key that an object has twice, no rows.
    """
    builder = JsonRows(f"text-{digest}" + (f"-{field}" if field else ""))
    builder.files, builder.subject, builder.field = files, name, field
    builder.download_and_prepare()
    return builder.as_dataset(split="train")


def count_document(file: Path) -> int | None:
    """The rows of a file that is one list or one object; None for one of JSON lines, each of which is a row."""
    return len(_document(file, None, _READING)) if _is_document(file) else None


class JsonRows(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """Writes the rows to the cache of `datasets`, some at a time."""

    files: Sequence[Path]
    subject: str
    field: str | None

    def __init__(self, content: str) -> None:
        super().__init__(config_name=content)

    def _info(self) -> Any:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager: Any) -> list[Any]:
        """Read everything once, for what is wrong with it and which columns hold lists or objects."""
        nested: dict[str, bool] = {}
        for rows in self._blocks(_CHECKING):
            for row in rows:
                for column, value in row.items():
                    if type(value) in (dict, list):
                        nested[column] = True
                    elif column not in nested:
                        nested[column] = False
        if not nested:
            raise InputError(f"data.path: {self.subject} is empty")
        kinds = {column: datasets.Json() if holds else datasets.Value("string") for column, holds in nested.items()}
        self.info.features = datasets.Features(kinds)
        return [datasets.SplitGenerator("train")]

    def _generate_tables(self) -> Iterator[tuple[int, Any]]:
        schema = self.info.features.arrow_schema
        columns: dict[str, list[Any]] = {column: [] for column in schema.names}
        written = held = 0
        for rows in chain(self._blocks(_READING), [[]]):
            for column, texts in columns.items():
                values = [row.get(column) for row in rows]
                if isinstance(self.info.features[column], datasets.Json):
                    texts += [_encoded(value) for value in values]
                else:
                    texts += [value if type(value) is str else _spelled(value) for value in values]
            held += len(rows)
            if held >= 1000 or not rows:
                yield written, pa.table(columns, schema=schema)
                columns = {column: [] for column in columns}
                written, held = written + held, 0

    def _blocks(self, decoder: json.JSONDecoder) -> Iterator[list[dict[str, Any]]]:
        for file in self.files:
            if self.field is not None or _is_document(file):
                yield _document(file, self.field, decoder)
            else:
                yield from _lines(file, decoder)


def _is_document(file: Path) -> bool:
    """Whether a file's first line opens a list, or an object that goes on below, and is no row."""
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        line = next(filter(str.strip, lines), "")
    if line.lstrip().startswith("["):
        return True
    try:
        json.loads(line or "null")
    except (ValueError, RecursionError):
        return file.suffix.lower() == ".json"
    return False


def _lines(file: Path, decoder: json.JSONDecoder, characters: int = 2**16) -> Iterator[list[dict[str, Any]]]:
    """The rows on the lines of a file, about so many characters at a time."""
    first = 1
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        while block := lines.readlines(characters):
            filled = [line for line in block if line.strip()]
            try:  # all at once is fast, one by one tells which is wrong
                rows = decoder.decode(f"[{','.join(filled)}]")
                _check(rows, "".join(filled), decoder)
                sound = len(rows) == len(filled)
            except (ValueError, RecursionError):
                sound = False
            if not sound:
                rows = [_row(line, f"{file}, line {n}") for n, line in enumerate(block, first) if line.strip()]
            yield rows
            first += len(block)


def _row(line: str, where: str) -> Any:
    try:
        row = _CHECKING.decode(line)
        _check([row], line, _CHECKING)
    except (ValueError, RecursionError) as error:
        raise _unreadable(where, error) from None
    return row


def _document(file: Path, field: str | None, decoder: json.JSONDecoder) -> list[dict[str, Any]]:
    """The rows of a list, or the one that an object is."""
    text = file.read_text(encoding="utf-8-sig")
    try:
        content = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _unreadable(f"{file}{line}", error) from None
    if field is not None:
        if not isinstance(content, dict) or field not in content:
            raise InputError(f"{file} can't be read: it is no object with {field}; give its rows as a list under that")
        content = content[field]
    rows = content if isinstance(content, list) else [content]
    if all(isinstance(row, str) for row in rows):
        rows = [{"text": row} for row in rows]
    try:
        _check(rows, text, decoder)
    except ValueError:
        for number, row in enumerate(rows):
            _row(json.dumps(row), f"{file}, row {number}")
    return rows


def _check(rows: Sequence[Any], text: str, decoder: json.JSONDecoder) -> None:
    """ValueError where a row, on the first reading, is no object, or holds what no file of text can."""
    if decoder is not _CHECKING:
        return
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is no object")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(rows, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(r"it holds half a character (\uD800 to \uDFFF without its other half)") from None


def _unreadable(where: str, error: Exception) -> InputError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return InputError(f"{where} can't be read: {reason}; mend the line or leave it out")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has {next(n for n in names if names.count(n) > 1)!r} twice")
    return row


def _spelled(value: Any) -> Any:
    """The value with its booleans as they are spelled; its numbers have been left so by the decoder."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return [_spelled(each) for each in value]
    return {name: _spelled(each) for name, each in value.items()} if isinstance(value, dict) else value


def _encoded(value: Any) -> str | None:
    if value is None:
        return None
    text = _ENCODER.encode(value)
    return _ENCODER.encode(_spelled(value)) if "true" in text or "false" in text else text


# NaN is how pandas and others write that something is missing.
_SPELLING: dict[str, Any] = {"parse_int": str, "parse_float": str}
_SPELLING["parse_constant"] = lambda name: None if name == "NaN" else name
_CHECKING = json.JSONDecoder(**_SPELLING, object_pairs_hook=_object)
_READING = json.JSONDecoder(**_SPELLING)
_ENCODER = json.JSONEncoder(ensure_ascii=False)
