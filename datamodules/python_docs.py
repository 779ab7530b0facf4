"""Telling which part of the standard library a sentence documents: the task of quickstart, with no download."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from lit_spectral.datamodules.sentences import SentenceDataModule

from lit_spectral.python_text import docstrings, split_sentences

__all__ = ["AREAS", "PythonDocs"]

# Parts of the standard library with enough documentation each to learn and to validate on.
AREAS = {
    "network": ("http", "urllib", "email", "socketserver", "socket", "ftplib", "smtplib", "imaplib", "ssl", "xmlrpc"),
    "concurrency": ("asyncio", "concurrent", "multiprocessing", "threading", "queue", "subprocess", "selectors"),
    "files": ("pathlib", "os", "shutil", "zipfile", "tarfile", "tempfile", "glob", "gzip", "lzma", "bz2", "posixpath"),
    "numbers": ("decimal", "_pydecimal", "fractions", "statistics", "random", "numbers", "datetime", "_pydatetime"),
    "interface": ("tkinter", "turtle", "curses", "idlelib", "cmd"),
    "testing": ("unittest", "doctest", "pdb", "bdb", "trace", "timeit", "profile", "cProfile"),
    "language": ("ast", "inspect", "typing", "importlib", "dis", "enum", "dataclasses", "functools", "types", "abc"),
}


class PythonDocs(SentenceDataModule):
    """Which area of the standard library a sentence of a docstring documents: seven classes.

    A docstring's sentences all fall on one side of the split, one docstring in eight to validation.
    """

    num_labels = len(AREAS)
    metrics = ("accuracy",)
    text_columns = ("sentence",)
    label_range = (0, len(AREAS) - 1)
    official_names = tuple(AREAS)

    def rows(self, name: str) -> Any:
        """Sentences and their labels; `test` is the validation set again."""
        import datasets

        wanted = [row for row in _labelled() if row[2] == (name != "train")]
        return datasets.Dataset.from_dict({"sentence": [row[0] for row in wanted], "label": [row[1] for row in wanted]})


@cache
def _labelled() -> list[tuple[str, int, bool]]:
    area_of = {module: label for label, modules in enumerate(AREAS.values()) for module in modules}
    rows: dict[str, tuple[str, int, bool]] = {}
    for module, text in docstrings():
        if module in area_of:
            validation = hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 8 == 0
            for sentence in split_sentences(text):
                rows.setdefault(sentence, (sentence, area_of[module], validation))
    return list(rows.values())
