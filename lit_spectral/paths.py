"""Where this package keeps what it computes once (spectra, the built-in backbone), and how it writes a file."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "write_text"]


def cache_folder(name: str) -> Path:
    """A folder below `$LIT_SPECTRAL_CACHE` (default `~/.cache/lit_spectral`), made if missing."""
    root = Path(os.environ.get("LIT_SPECTRAL_CACHE") or Path.home() / ".cache" / "lit_spectral")
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_text(file: Path, text: str) -> None:
    """Write a file of UTF-8, in whole or not at all: beside its place, flushed, renamed. Makes the folder too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with draft.open("w", encoding="utf-8") as written:
            written.write(text)
            written.flush()
            os.fsync(written.fileno())
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
