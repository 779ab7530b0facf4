"""Real text that every CPython brings along: its language reference and its docstrings.

What quickstart and the tests run on, with no download: a corpus of sentences, and the task of
telling which part of the standard library a sentence documents.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

from lit_spectral.datamodules.sentences import SentenceDataModule

__all__ = ["AREAS", "PythonDocs", "sentences"]

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

NOT_DOCUMENTATION = {"site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


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


def sentences() -> list[str]:
    """The corpus: sentences of the language reference and of all docstrings, without repeats."""
    from pydoc_data import topics

    texts = [*topics.topics.values(), *(text for _, text in _docstrings())]
    return list(dict.fromkeys(sentence for text in texts for sentence in _split(text)))


@cache
def _labelled() -> list[tuple[str, int, bool]]:
    area_of = {module: label for label, modules in enumerate(AREAS.values()) for module in modules}
    rows: dict[str, tuple[str, int, bool]] = {}
    for module, text in _docstrings():
        if module in area_of:
            validation = hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 8 == 0
            for sentence in _split(text):
                rows.setdefault(sentence, (sentence, area_of[module], validation))
    return list(rows.values())


@cache
def _docstrings() -> list[tuple[str, str]]:
    """(top-level module, docstring) of every documented object, read from the sources, nothing imported."""
    library = Path(sysconfig.get_path("stdlib"))
    packages = [entry for entry in library.iterdir() if entry.is_dir() and entry.name not in NOT_DOCUMENTATION]
    sources = [*library.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))]
    found = []
    for path in sorted(sources):
        parts = path.relative_to(library).parts
        if NOT_DOCUMENTATION.isdisjoint(parts):
            tree = ast.parse(path.read_bytes())
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
            found += [(parts[0].removesuffix(".py"), text) for text in texts if text]
    return found


def _split(text: str) -> list[str]:
    """Sentences of five to sixty words; code, tables and underlines are left out."""
    paragraphs = re.split(r"\n\s*\n", text)
    prose = (" ".join(p.split()) for p in paragraphs if not re.search(r"^\s*(>>>|\.\.|\+--|[-=*~^]{3,})", p, re.M))
    found = (sentence for p in prose for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z\"'(])", p))
    return [sentence for sentence in found if 5 <= len(sentence.split()) <= 60]
