"""Where this package keeps what it computes once: spectra, the built-in backbone."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(name: str) -> Path:
    """A folder below `$LIT_SPECTRAL_CACHE` (default `~/.cache/lit_spectral`), made if missing."""
    root = Path(os.environ.get("LIT_SPECTRAL_CACHE") or Path.home() / ".cache" / "lit_spectral")
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
