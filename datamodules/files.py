"""Rows of a data set, from a local folder or from the hub."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lit_spectral.errors import InputError

__all__ = [
    "check_columns",
    "name_row",
    "read_blocks",
    "read_rows",
    "read_split",
    "read_text",
    "source_of",
    "split_exists",
]

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def read_split(path: str, split: str, config: str | None = None) -> Any:
    """One split as a `datasets.Dataset`.

    Args:
        path: a folder with `<split>.jsonl`, `.json`, `.parquet` or `.csv` (or the hub's sharded
            names, `<split>-00000-of-00001.parquet`), or a hub id.
        split: `train`, `validation`, …
        config: of the hub's data set; in a folder, a subfolder of that name if there is one.

    Raises:
        InputError: no such folder, hub out of reach, no file for the split, a file that can't be
            parsed, an empty split.
    """
    import datasets

    folder = _folder(path, config)
    if folder is None:
        try:
            rows = datasets.load_dataset(path, config, split=split)
        except Exception as error:
            raise _unreachable(path, split, error) from error
    else:
        files = _files(folder, split)
        if not files:
            raise InputError(
                f"data.path: {folder} has no file for split {split} ({split}.jsonl, .json, .parquet or .csv)"
            )
        rows = _load(files, f"split {split} of {path}")
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
    if file.startswith("hf://") and path.suffix in _BUILDERS:
        import datasets

        try:
            return datasets.load_dataset(_BUILDERS[path.suffix], data_files=file, split="train")
        except Exception as error:
            raise InputError(
                f"data: {file} is not to be had from the hub now; give a local copy of the file ({_first_line(error)})"
            ) from error
    if not path.is_file() or path.suffix not in _BUILDERS:
        raise InputError(f"data: there is no file {file} of {', '.join(_BUILDERS)}")
    return _load([path], str(path), field)


def split_exists(path: str, split: str, config: str | None = None) -> bool:
    """Whether a folder, or a data set on the hub, has the split.

    Raises:
        InputError: no such folder, hub out of reach.
    """
    folder = _folder(path, config)
    if folder is not None:
        return bool(_files(folder, split))
    import datasets

    try:
        return split in datasets.get_dataset_split_names(path, config)
    except Exception as error:
        raise _unreachable(path, split, error) from error


def source_of(path: str, split: str, config: str | None = None) -> tuple[str, int]:
    """How errors name a row of a split: a prefix to the row's number, and the number of its first row.

    `FILE, line ` and 1 for one file of jsonl, `FILE, row ` and 0 for one of another kind, and
    `split NAME, row ` and 0 for several files and the hub.
    """
    folder = _folder(path, config)
    files = _files(folder, split) if folder is not None else []
    if len(files) != 1:
        return f"split {split}, row ", 0
    return (f"{files[0]}, line ", 1) if files[0].suffix == ".jsonl" else (f"{files[0]}, row ", 0)


def name_row(source: tuple[str, int], number: int) -> str:
    """How errors name a row, counted from 0, of what `source_of` describes; blank lines of a file are counted too."""
    prefix, first = source
    file = Path(prefix.removesuffix(", line "))
    if prefix.endswith(", line ") and file.is_file():
        with file.open("rb") as lines:
            filled = (index for index, line in enumerate(lines, 1) if line.strip())
            return f"{prefix}{next(islice(filled, number, None), number + first)}"
    return f"{prefix}{number + first}"


def read_text(path: str) -> str:
    """A UTF-8 file, or the .txt files of a folder in the order of their names, one below the other.

    Raises:
        InputError: as in `read_blocks`.
    """
    return "".join(read_blocks(path)).removesuffix("\n")


def read_blocks(path: str, characters: int = 2_000_000) -> Iterator[str]:
    """The same as it is asked for, in blocks of whole lines of about so many characters, each with its line end.

    Raises:
        InputError: no such file, a folder without .txt files, a file that is not UTF-8.
    """
    given = Path(path).expanduser()
    files = sorted(given.glob("*.txt")) if given.is_dir() else [given]
    if not files:
        raise InputError(f"data.path: the folder {path} has no .txt file")
    for file in files:
        yield from _blocks(file, characters)


def check_columns(rows: Any, wanted: Sequence[str], where: str) -> None:
    """InputError naming the columns that are missing, and those there are."""
    missing = [column for column in wanted if column not in rows.column_names]
    if missing:
        raise InputError(f"{where}: no column {', '.join(missing)}; its columns are {', '.join(rows.column_names)}")


def _load(files: Sequence[Path], name: str, field: str | None = None) -> Any:
    import datasets

    if not any(file.stat().st_size for file in files):
        raise InputError(f"data.path: {name} is empty")
    digest = _content_digest(files)
    options: dict[str, Any] = {"field": field} if field else {}
    if files[0].suffix == ".csv":  # else pandas takes sentences such as "None" and "n/a" for missing
        options = {"keep_default_na": False}
    try:
        builder = _BUILDERS[files[0].suffix]
        # Under a name of its content: datasets itself goes by path and time, which copies can keep.
        content = f"content-{digest}"
        return datasets.load_dataset(builder, content, data_files=[str(f) for f in files], split="train", **options)
    except Exception as error:
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):  # what datasets says of a header without rows
            raise InputError(f"data.path: {name} is empty") from error
        if isinstance(cause, OSError) and cause.filename is not None and Path(cause.filename) not in files:
            raise InputError(
                f"data: datasets can't keep what it reads in {datasets.config.HF_DATASETS_CACHE} ({cause}); "
                "set HF_HOME to a folder"
            ) from error
        reason = _first_broken_line(files) or f"{files[0]} can't be read: {_first_line(cause)}"
        raise InputError(reason) from error


def _folder(path: str, config: str | None) -> Path | None:
    folder = Path(path).expanduser()
    if folder.is_dir():
        inner = folder / config if config else folder
        return inner if inner.is_dir() else folder
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise InputError(f"data.path: there is no folder {path}")
    return None


def _files(folder: Path, split: str) -> list[Path]:
    for suffix in _BUILDERS:
        for pattern in (f"{split}{suffix}", f"{split}-*-of-*{suffix}"):
            found = sorted(folder.glob(pattern))
            if found:
                return found
    return []


def _blocks(file: Path, characters: int) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            while block := lines.readlines(characters):
                text = "".join(block)
                yield text if text.endswith("\n") else f"{text}\n"
    except FileNotFoundError:
        raise InputError(f"data.path: there is no file {file}") from None
    except UnicodeDecodeError:
        raise _not_utf8(file) from None


def _not_utf8(file: Path) -> InputError:
    """The error that names the first line that isn't."""
    with file.open("rb") as lines:
        number = next((number for number, line in enumerate(lines, 1) if not _is_utf8(line)), 0)
    return InputError(f"{file}, line {number} can't be read: it is not UTF-8; convert the file")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _content_digest(files: Sequence[Path]) -> str:
    """Of all that the files hold; InputError where one of text is not UTF-8, which pyarrow finds out too late."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        decoder = codecs.getincrementaldecoder("utf-8")()
        with file.open("rb") as content:
            while block := content.read(2**24):
                digest.update(block)
                if file.suffix != ".parquet":
                    try:
                        decoder.decode(block)
                    except UnicodeDecodeError:
                        raise _not_utf8(file) from None
    return digest.hexdigest()


def _unreachable(path: str, split: str, error: Exception) -> InputError:
    return InputError(
        f"data.path: {path} is neither a local folder nor to be had from the hub now; "
        f"give --data.path FOLDER with {split}.jsonl, .parquet or .csv ({_first_line(error)})"
    )


def _first_broken_line(files: Sequence[Path]) -> str | None:
    """What is wrong in the first line of the files that is no JSON; None where all are, or in other formats."""
    for file in files:
        content = file.read_bytes() if file.suffix in {".jsonl", ".json"} else b""
        by_lines = file.suffix == ".jsonl" or (_why_no_json(content) or (0, ""))[1] == "Extra data"
        for number, text in enumerate(content.split(b"\n") if by_lines else [content], 1):
            broken = _why_no_json(text)
            if broken:
                line, reason = broken
                return f"{file}, line {number + line - 1} can't be read: {reason}; mend the line or leave it out"
    return None


def _why_no_json(text: bytes) -> tuple[int, str] | None:
    """The line at which a text ceases to be JSON, from 1, and why; None if it doesn't."""
    try:
        json.loads(text.strip() or b"null")  # datasets passes over blank lines
    except json.JSONDecodeError as error:
        return error.lineno, error.msg
    except UnicodeDecodeError as error:
        return text[: error.start].count(b"\n") + 1, "it is not UTF-8"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
