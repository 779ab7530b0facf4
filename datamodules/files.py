"""Rows of a data set, from a local folder or from the hub.

What a file of JSON or CSV spells is read as text, whatever it looks like; what is to be a number is made one where
it is used (`columns`). Parquet and the hub have types of their own, of which text is made where it is used.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_spectral.datamodules.csv_rows import fault, text_options
from lit_spectral.datamodules.plain_text import not_utf8
from lit_spectral.datamodules.splits import FORMATS, choose, files_of, folder_of

from lit_spectral.errors import InputError

__all__ = ["check_columns", "read_rows", "read_split", "split_exists"]

log = logging.getLogger(__name__)

# How files begin that are at times named as if they were text.
_OPENINGS = {b"PK\x03\x04": "a zip or Excel file", b"\x1f\x8b": "a gzip file", b"PAR1": "a Parquet file"}


def read_split(path: str, split: str, config: str | None = None) -> Any:
    """One split as a `datasets.Dataset`.

    Args:
        path: a folder with `<split>.jsonl`, `.json`, `.parquet` or `.csv`, its shards as the hub
            names them (`<split>-00000-of-00001.parquet`), or another usual name of the split
            (`splits`), which is logged; one such file, which is the split `train`; or a hub id.
        split: `train`, `validation`, …
        config: of the hub's data set; in a folder, a subfolder of that name if there is one.

    Raises:
        InputError: no such folder, hub out of reach, no file for the split, several, a file that
            can't be parsed, an empty split.
    """
    folder = folder_of(path, config)
    if folder is None:
        name, rows = _from_hub(path, split, config)
    else:
        files = files_of(folder, split)
        if not files:
            said = "is one file, and so has no" if folder.is_file() else "has no file for"
            raise InputError(f"data.path: {folder} {said} split {split} ({split}.jsonl, .json, .parquet or .csv)")
        name = files[0].name
        rows = _load(files, f"split {split} of {path}")
    if not (folder and folder.is_file()) and not re.match(rf"{split}([.]|-\d|$)", name):
        log.info("%s: split %s is read from %s", path, split, name)
    if len(rows) == 0:
        raise InputError(f"data.path: split {split} of {path} is empty")
    return rows


def read_rows(file: str, field: str | None = None) -> Any:
    """One file of rows (jsonl, json, parquet or csv) as a `datasets.Dataset`.

    Args:
        file: its path, or where it is on the hub (`hf://datasets/…`); its suffix names the format.
        field: the key of a JSON object under which the rows are a list.

    Raises:
        InputError: no such file, another suffix, a file that can't be parsed or is empty.
    """
    path = Path(file).expanduser()
    if file.startswith("hf://") and path.suffix.lower() in FORMATS:
        import datasets

        try:
            local = Path(datasets.DownloadManager().download(file))
        except Exception as error:
            raise InputError(
                f"data: {file} is not to be had from the hub now; give a local copy of the file ({_first_line(error)})"
            ) from error
        return _load([local], file, field, path.suffix.lower())
    if not path.is_file() or path.suffix.lower() not in FORMATS:
        raise InputError(f"data: there is no file {file} of {', '.join(FORMATS)}")
    return _load([path], str(path), field)


def split_exists(path: str, split: str, config: str | None = None) -> bool:
    """Whether a folder, or a data set on the hub, has the split, under this or another usual name.

    Raises:
        InputError: no such folder, hub out of reach, several that could be the split, or one that can't be read.
    """
    folder = folder_of(path, config)
    if folder is not None:
        return bool(files_of(folder, split))
    import datasets

    try:
        return choose(datasets.get_dataset_split_names(path, config), split, path) is not None
    except InputError:
        raise
    except Exception as error:
        raise _unreachable(path, split, error) from error


def check_columns(rows: Any, wanted: Sequence[str], where: str) -> None:
    """InputError naming the columns that are missing, those there are, and what may be the reason."""
    import datasets

    missing = [column for column in wanted if column not in rows.column_names]
    if not missing:
        return
    listed = ", ".join(column if column == column.strip() else repr(column) for column in rows.column_names)
    listed = listed if len(listed) <= 100 else f"{listed[:100]}…"
    blanks = next((column for column in rows.column_names if column.strip() in missing), None)
    hint = f"; take the blanks out of {blanks!r}" if blanks is not None else ""
    for column in [name for name, feature in rows.features.items() if isinstance(feature, datasets.Json)]:
        value = rows.select_columns([column])[0][column]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            hint = f"; if the rows lie under the field {column!r}, make each a row of the file"
    raise InputError(f"{where}: no column {', '.join(missing)}; its columns are {listed}{hint}")


def _load(files: Sequence[Path], name: str, field: str | None = None, suffix: str | None = None) -> Any:
    import datasets

    if not any(file.stat().st_size for file in files):
        raise InputError(f"data.path: {name} is empty")
    builder = FORMATS[suffix or files[0].suffix.lower()]
    digest = _content_digest(files, is_text=builder != "parquet")
    verbosity = datasets.logging.get_verbosity()
    try:
        if builder == "json":
            from lit_spectral.datamodules.json_rows import read_json

            return read_json(files, name, field, digest)
        if builder == "parquet" and not (files := _parquet_with_rows(files)):
            raise InputError(f"data.path: {name} is empty")
        options = text_options(files) if builder == "csv" else {}
        # Under a name of its content: datasets itself goes by path and time, which copies can keep.
        content = f"text-{digest}"
        datasets.logging.set_verbosity(logging.CRITICAL)  # what is wrong is said once, below
        return datasets.load_dataset(builder, content, data_files=[str(f) for f in files], split="train", **options)
    except InputError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        # What datasets says of a header without rows, and pandas of blank lines.
        if "corresponds to no data" in str(cause) or "No columns to parse" in str(cause):
            raise InputError(f"data.path: {name} is empty") from error
        if isinstance(cause, OSError) and cause.filename is not None and Path(cause.filename) not in files:
            raise InputError(
                f"data: datasets can't keep what it reads in {datasets.config.HF_DATASETS_CACHE} ({cause}); "
                "set HF_HOME to a folder"
            ) from error
        reason = next(filter(None, map(fault, files)), None) if builder == "csv" else None
        raise reason or InputError(f"{files[0]} can't be read: {_first_line(cause)}; write it anew") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _parquet_with_rows(files: Sequence[Path]) -> list[Path]:
    """The files of Parquet that have rows, which datasets can't do without; InputError for one that can't be read."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    filled = []
    for file in files:
        try:
            with pq.ParquetFile(file) as content:
                names, count = content.schema_arrow.names, content.metadata.num_rows
        except ArrowException as error:
            raise InputError(f"{file} can't be read: {_first_line(error)}; write it anew as Parquet") from error
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{file} can't be read: it has column {twice!r} twice; rename one")
        if count:
            filled.append(file)
    return filled


def _from_hub(path: str, split: str, config: str | None) -> tuple[str, Any]:
    """The name of the split there, and its rows."""
    import datasets

    try:
        try:
            return split, datasets.load_dataset(path, config, split=split)
        except ValueError:
            name = choose(datasets.get_dataset_split_names(path, config), split, path)
            if name in {None, split}:
                raise
            return str(name), datasets.load_dataset(path, config, split=name)
    except InputError:
        raise
    except Exception as error:
        raise _unreachable(path, split, error) from error


def _content_digest(files: Sequence[Path], is_text: bool) -> str:
    """Of all that the files hold; InputError where one of text is not UTF-8, which pyarrow finds out too late."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with file.open("rb") as content:
            kind = next((kind for opening, kind in _OPENINGS.items() if content.peek(4).startswith(opening)), None)
            if is_text and kind is not None:
                raise InputError(f"{file} can't be read: it is {kind}; give it as text in {file.suffix}")
            while block := content.read(2**24):
                digest.update(block)
                if is_text:
                    try:
                        decoder.decode(block)
                    except UnicodeDecodeError:
                        raise not_utf8(file) from None
    return digest.hexdigest()


def _unreachable(path: str, split: str, error: Exception) -> InputError:
    return InputError(
        f"data.path: {path} is neither a local folder nor to be had from the hub now; "
        f"give --data.path FOLDER with {split}.jsonl, .parquet or .csv ({_first_line(error)})"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
