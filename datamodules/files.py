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
from itertools import islice
from pathlib import Path
from typing import Any

from lit_spectral.datamodules.plain_text import not_utf8
from lit_spectral.datamodules.splits import FORMATS, choose, files_of

from lit_spectral.errors import InputError

__all__ = [
    "check_columns",
    "name_row",
    "read_rows",
    "read_split",
    "source_of",
    "split_exists",
]

log = logging.getLogger(__name__)


def read_split(path: str, split: str, config: str | None = None) -> Any:
    """One split as a `datasets.Dataset`.

    Args:
        path: a folder with `<split>.jsonl`, `.json`, `.parquet` or `.csv`, its shards as the hub
            names them (`<split>-00000-of-00001.parquet`), or another usual name of the split
            (`splits`), which is logged; or a hub id.
        split: `train`, `validation`, …
        config: of the hub's data set; in a folder, a subfolder of that name if there is one.

    Raises:
        InputError: no such folder, hub out of reach, no file for the split, several, a file that
            can't be parsed, an empty split.
    """
    folder = _folder(path, config)
    if folder is None:
        name, rows = _from_hub(path, split, config)
    else:
        files = files_of(folder, split)
        if not files:
            raise InputError(
                f"data.path: {folder} has no file for split {split} ({split}.jsonl, .json, .parquet or .csv)"
            )
        name = files[0].name
        rows = _load(files, f"split {split} of {path}")
    if not re.match(rf"{split}([.]|-\d|$)", name):
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
    folder = _folder(path, config)
    if folder is not None:
        return bool(files_of(folder, split))
    import datasets

    try:
        return choose(datasets.get_dataset_split_names(path, config), split, path) is not None
    except InputError:
        raise
    except Exception as error:
        raise _unreachable(path, split, error) from error


def source_of(path: str, split: str, config: str | None = None) -> tuple[str, int]:
    """How errors name a row of a split: a prefix to the row's number, and the number of its first row.

    `FILE, line ` and 1 for one file of jsonl, `FILE, row ` and 0 for one of another kind, and
    `split NAME, row ` and 0 for several files and the hub.
    """
    folder = _folder(path, config)
    files = files_of(folder, split) if folder is not None else []
    if len(files) != 1:
        return f"split {split}, row ", 0
    return (f"{files[0]}, line ", 1) if files[0].suffix.lower() == ".jsonl" else (f"{files[0]}, row ", 0)


def name_row(source: tuple[str, int], number: int) -> str:
    """How errors name a row, counted from 0, of what `source_of` describes; blank lines of a file are counted too."""
    prefix, first = source
    file = Path(prefix.removesuffix(", line "))
    if prefix.endswith(", line ") and file.is_file():
        with file.open("rb") as lines:
            filled = (index for index, line in enumerate(lines, 1) if line.strip())
            return f"{prefix}{next(islice(filled, number, None), number + first)}"
    return f"{prefix}{number + first}"


def check_columns(rows: Any, wanted: Sequence[str], where: str) -> None:
    """InputError naming the columns that are missing, and those there are."""
    missing = [column for column in wanted if column not in rows.column_names]
    if missing:
        raise InputError(f"{where}: no column {', '.join(missing)}; its columns are {', '.join(rows.column_names)}")


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
        options = _as_text(files) if builder == "csv" else {}
        # Under a name of its content: datasets itself goes by path and time, which copies can keep.
        content = f"text-{digest}"
        datasets.logging.set_verbosity(logging.CRITICAL)  # what is wrong is said once, below
        return datasets.load_dataset(builder, content, data_files=[str(f) for f in files], split="train", **options)
    except InputError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):  # what datasets says of a header without rows
            raise InputError(f"data.path: {name} is empty") from error
        if isinstance(cause, OSError) and cause.filename is not None and Path(cause.filename) not in files:
            raise InputError(
                f"data: datasets can't keep what it reads in {datasets.config.HF_DATASETS_CACHE} ({cause}); "
                "set HF_HOME to a folder"
            ) from error
        raise InputError(f"{files[0]} can't be read: {_first_line(cause)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _as_text(files: Sequence[Path]) -> dict[str, Any]:
    """Options with which CSV is read as it is spelled: pandas makes numbers of 003, and nothing of None or n/a."""
    import datasets
    import pandas

    options = {"keep_default_na": False}
    heads = [pandas.read_csv(file, dtype=str, nrows=1, **options) for file in files]
    for file, head in zip(files, heads, strict=True):
        if not isinstance(head.index, pandas.RangeIndex):  # it takes what is too much for names of rows
            raise InputError(f"{file} can't be read: its first row has more fields than its header; quote commas")
        if set(head.columns) != set(heads[0].columns):
            raise InputError(f"{file} can't be read: its columns are others than those of {files[0]}")
    return options | {"features": datasets.Features(dict.fromkeys(heads[0].columns, datasets.Value("string")))}


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


def _folder(path: str, config: str | None) -> Path | None:
    folder = Path(path).expanduser()
    if folder.is_dir():
        inner = folder / config if config else folder
        return inner if inner.is_dir() else folder
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise InputError(f"data.path: there is no folder {path}")
    return None


def _content_digest(files: Sequence[Path], is_text: bool) -> str:
    """Of all that the files hold; InputError where one of text is not UTF-8, which pyarrow finds out too late."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with file.open("rb") as content:
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
