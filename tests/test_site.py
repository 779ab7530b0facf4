"""The site's pages beside the code that they are about; `make docs` itself refuses one that lacks a public name."""

import inspect
import re
import runpy
from dataclasses import fields

import pytest
from doc_pages import ROOT

from lit_spectral import methods
from lit_spectral.methods.base import ScaledMethod

METHOD_PAGES = {
    "bottleneck": "Houlsby",
    "fclora": "FCLoRA",
    "hilora": "HiLoRA",
    "hiplora": "HiPLoRA",
    "hira": "HiRA",
    "milora": "MiLoRA",
    "stella": "StelLA",
}


@pytest.mark.parametrize(("page", "name"), METHOD_PAGES.items())
def test_a_methods_page_has_its_own_settings_and_their_defaults(page, name):
    text = (ROOT / "docs" / "methods" / f"{page}.md").read_text()
    shown = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", text, re.MULTILINE))
    kind = getattr(methods, name)
    defaults = {field.name: str(field.default) for field in fields(kind)}
    assert {"rank", "width"} & shown.keys()
    assert shown == {setting: defaults[setting] for setting in shown}
    told = {*re.findall(r"`(\w+)", text)}
    assert {*inspect.get_annotations(kind)} <= told | {"part"}


def test_the_guide_names_the_settings_that_a_method_of_ones_own_gets():
    told = (ROOT / "docs" / "guides" / "own_method.md").read_text().partition("know them from here.")[2]
    assert {*re.findall(r"`(\w+)`", told.partition("come with")[0])} == {field.name for field in fields(ScaledMethod)}


def test_every_method_has_a_page_or_a_row_of_the_baselines():
    told = set(METHOD_PAGES.values())
    rows = (ROOT / "docs" / "methods" / "baselines.md").read_text()
    told |= {*re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)}
    assert told == {*methods.__all__} - {"Bound", "Method", "LowRankMethod"}


def test_pictures_are_what_their_scripts_draw():
    choose, shapes = (runpy.run_path(str(ROOT / "docs" / f"{name}.py")) for name in ("choose", "shapes"))
    assert choose["FILE"].read_text(encoding="utf-8") == choose["render"]()
    drawn = {f"{name}.svg": shapes["render"](name) for name in shapes["PARTS"]}
    assert drawn == {file.name: file.read_text(encoding="utf-8") for file in shapes["FOLDER"].glob("*.svg")}


def test_every_package_with_public_names_is_in_the_reference():
    shown = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    packages = {*re.findall(r"^::: (\S+)", shown, re.MULTILINE)}
    exporting = [
        file
        for folder in ("lit_spectral", "callbacks", "datamodules")
        for file in (ROOT / folder).rglob("__init__.py")
        if "__all__" in file.read_text()
    ]
    inside = {".".join(file.parent.relative_to(ROOT).parts) for file in exporting}
    assert {name if name.startswith("lit_spectral") else f"lit_spectral.{name}" for name in inside} <= packages
