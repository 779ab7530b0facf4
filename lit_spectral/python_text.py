"""Real text that every CPython brings along: its language reference and its docstrings."""

from __future__ import annotations

import ast
import re
import sysconfig
from functools import cache
from pathlib import Path

__all__ = ["docstrings", "sentences", "split_sentences"]

NOT_DOCUMENTATION = {"site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


def sentences() -> list[str]:
    """The corpus: sentences of the language reference and of all docstrings, without repeats."""
    from pydoc_data import topics

    texts = [*topics.topics.values(), *(text for _, text in docstrings())]
    return list(dict.fromkeys(sentence for text in texts for sentence in split_sentences(text)))


@cache
def docstrings() -> list[tuple[str, str]]:
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


def split_sentences(text: str) -> list[str]:
    """Sentences of five to sixty words; code, tables and underlines are left out."""
    paragraphs = re.split(r"\n\s*\n", text)
    prose = (" ".join(p.split()) for p in paragraphs if not re.search(r"^\s*(>>>|\.\.|\+--|[-=*~^]{3,})", p, re.M))
    found = (sentence for p in prose for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z\"'(])", p))
    return [sentence for sentence in found if 5 <= len(sentence.split()) <= 60]
