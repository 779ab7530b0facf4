"""What the site needs besides its pages: the package in one piece to read docstrings from, and a look at the result."""

from __future__ import annotations

import ast
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# As a wheel has it: `callbacks` and so on lie inside there. Docstrings are read from text, so that no torch is needed.
PACKAGES = ROOT / "build" / "packages"
PACKAGE = PACKAGES / "lit_spectral"


def on_startup(command: str, dirty: bool) -> None:
    """Put the package together, before mkdocstrings looks for it."""
    shutil.rmtree(PACKAGES, ignore_errors=True)
    cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lit_spectral", PACKAGE, ignore=cache)
    for name in ("callbacks", "configs", "datamodules"):
        shutil.copytree(ROOT / name, PACKAGE / name, ignore=cache)


def on_files(files: Files, config: Any) -> Files:
    """Take pages of the repository's root from there."""
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse a page that takes anything from a network, and one with a table or a list that was taken for text."""
    taken = re.search(r"<(?:script|img|iframe)[^>]*\ssrc=\"?https?:[^>]*|<link[^>]*stylesheet[^>]*https?:[^>]*", output)
    if taken:
        raise PluginError(f"{page.file.src_uri}: {taken[0]}> would come from a network; have it in docs/")
    for paragraph in re.findall(r"<p>(.*?)</p>", output, re.DOTALL):
        text = re.sub(r"<code>.*?</code>", "", paragraph, flags=re.DOTALL)
        if re.search(r"\|\s*:?---|\n\s*(?:[-*]|\d+\.) ", text):  # GitHub needs no empty line before one
            raise PluginError(f"{page.file.src_uri}: a table or list is shown as text; leave a line free before it")
    return output


def on_post_build(config: Any) -> None:
    """Refuse a site that lacks a public name."""
    # Sphinx's inventory: four lines about it, then a name a line, compressed.
    *_, packed = (Path(config["site_dir"]) / "objects.inv").read_bytes().split(b"\n", 4)
    shown = {line.split(" ", 1)[0] for line in zlib.decompress(packed).decode().splitlines()}
    missing = [name for name in public_names() if name not in shown]
    if missing:
        raise PluginError(f"no page of docs/reference shows {', '.join(missing)}")


def public_names() -> list[str]:
    """What the packages export, by its full name."""
    found = []
    for file in sorted(PACKAGE.rglob("__init__.py")):
        package = ".".join(file.parent.relative_to(PACKAGES).parts)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                found += [f"{package}.{name}" for name in ast.literal_eval(node.value)]
    return found
