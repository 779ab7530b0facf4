"""What is printed must not end a program."""

from __future__ import annotations

import io
import sys

__all__ = ["print_anything"]


def print_anything() -> None:
    """From now on characters that standard output's encoding lacks, such as Δ and σ, are printed as `?`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr writes their numbers anyway
        sys.stdout.reconfigure(errors="replace")
