"""Where rows come from: how errors name a row of any data module, by its file and its line there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lit_spectral.datamodules.csv_rows import records
from lit_spectral.datamodules.splits import files_of, folder_of

__all__ = ["Source", "name_row", "source_of", "source_of_file"]


class Source(NamedTuple):
    """Rows, as errors name them.

    Attributes:
        name: of all of them together: their file, or `split NAME of PATH`.
        files: that hold them, in the order of the rows; none for what is not here.
        numbers: the place of each among the rows of the files, from 0; None where all are used as they come.
    """

    name: str
    files: tuple[Path, ...] = ()
    numbers: Sequence[int] | None = None


def source_of(path: str, split: str, config: str | None = None) -> Source:
    """Where the rows of `files.read_split` come from.

    Raises:
        InputError: as in `read_split`, for a folder without the split or with several.
    """
    folder = folder_of(path, config)
    files = tuple(files_of(folder, split)) if folder is not None else ()
    return Source(str(files[0]) if len(files) == 1 else f"split {split} of {path}", files)


def source_of_file(file: str) -> Source:
    """Where the rows of `files.read_rows` come from: a file, here or on the hub."""
    path = Path(file).expanduser()
    return Source(str(path), (path,)) if path.is_file() else Source(file)


def name_row(source: Source, number: int) -> str:
    """How errors name the row with this number, from 0, of a source.

    `FILE, line 3`, counted from 1 and with blank lines, where a row has a line of its own or begins on one (JSON
    lines, CSV, text); `FILE, row 2`, counted from 0, in Parquet and JSON documents; `NAME, row 2` without a file.
    """
    if source.numbers is not None:
        number = source.numbers[number]
    places = (f"{file}, {place}" for file in source.files for place in _places(file))
    return next(islice(places, number, None), f"{source.name}, row {number}")


def _places(file: Path) -> Iterator[str]:
    """Where each row of a file is in it. The file is read again, since only an error wants to know."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from (f"row {row}" for row in range(pq.read_metadata(file).num_rows))
    elif suffix == ".csv":
        yield from (f"line {line}" for line, _ in islice(records(file), 1, None))  # the first is the header
    else:
        from lit_spectral.datamodules.json_rows import count_document

        rows = count_document(file) if suffix in {".json", ".jsonl"} else None
        if rows is not None:
            yield from (f"row {row}" for row in range(rows))
            return
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
            yield from (f"line {number}" for number, line in enumerate(lines, 1) if line.strip())
