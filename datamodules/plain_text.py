"""Files of plain text, UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lit_spectral.errors import InputError

__all__ = ["not_utf8", "read_blocks", "read_text"]


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


def _blocks(file: Path, characters: int) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            while block := lines.readlines(characters):
                text = "".join(block)
                yield text if text.endswith("\n") else f"{text}\n"
    except FileNotFoundError:
        raise InputError(f"data.path: there is no file {file}") from None
    except UnicodeDecodeError:
        raise not_utf8(file) from None


def not_utf8(file: Path) -> InputError:
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
