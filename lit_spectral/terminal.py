"""What is printed: it must not end a program, and this package's notes are part of it."""

from __future__ import annotations

import io
import logging
import os
import sys

__all__ = ["print_anything", "show_notes"]


def print_anything() -> None:
    """From now on characters that standard output's encoding lacks, such as Δ and σ, are printed as `?`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr writes their numbers anyway
        sys.stdout.reconfigure(errors="replace")


def show_notes() -> None:
    """Let this package's notes, such as what a decomposition cost, be seen; those of one process."""
    logger = logging.getLogger("lit_spectral")
    if not logger.handlers and os.environ.get("LOCAL_RANK", "0") == "0":
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
