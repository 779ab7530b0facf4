"""What is shipped, and the ways of starting it that README names: installed in each way or not, and from anywhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import made_once

import lit_spectral

ROOT = Path(__file__).parents[1]
PRE_COMMIT = ROOT / ".pre-commit-config.yaml"
BESIDE = ("callbacks", "configs", "datamodules")
NO_INDEX = ["--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]


def run(*command, cwd="/", **environment):
    """Standard output of a process that ends well."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run([*map(str, command)], capture_output=True, cwd=cwd, env=clean | environment, timeout=240)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode()


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """A folder with a `checkout`, what is built of it, environments, and a user's folder full of `decoys`."""
    return made_once(tmp_path_factory, "packaging", make)


def make(folder):
    litter = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "lightning_logs", "runs")
    shutil.copytree(ROOT, folder / "checkout", ignore=litter)
    build = "import sys; from setuptools.build_meta import *; to = sys.argv[1]; build_wheel(to)"
    run(sys.executable, "-c", f"{build}; build_sdist(to)", folder / "built", cwd=folder / "checkout")
    (source,) = folder.glob("built/*.tar.gz")
    shutil.unpack_archive(source, folder / "unpacked")
    run(sys.executable, "-c", build, folder / "rebuilt", cwd=next(folder.glob("unpacked/*")))
    (wheel,) = folder.glob("built/*.whl")
    environment(folder / "none")
    environment(folder / "wheel", wheel)
    environment(folder / "editable", "--editable", folder / "checkout")
    environment(folder / "strict", "--editable", folder / "checkout", "--config-settings", "editable_mode=strict")
    for name in BESIDE:
        (folder / "decoys" / name).mkdir(parents=True)
        (folder / "decoys" / name / "__init__.py").write_text("raise SystemExit('not ours')")


def environment(folder, *installed):
    """A virtual environment with this one's libraries, and the package as pip installs it."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (packages,) = folder.glob("lib/*/site-packages")
    for library in (entry for path in sys.path if Path(path).name == "site-packages" for entry in Path(path).iterdir()):
        ours = "lit_spectral" in library.name or library.name == "__pycache__"
        if not ours and not (packages / library.name).exists():
            (packages / library.name).symlink_to(library)
    if installed:
        run(folder / "bin" / "python", "-m", "pip", "install", *NO_INDEX, *installed)


def packaged(checkout):
    """Where the files of the packages are, and where they belong when installed."""
    for name in ("lit_spectral", *BESIDE):
        for file in (checkout / name).rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                inside = file.relative_to(checkout)
                yield str(inside), str("lit_spectral" / inside if name in BESIDE else inside)


def test_the_wheel_has_all_files_of_the_packages_and_no_others(places):
    (wheel,) = places.glob("built/*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {installed for _, installed in packaged(places / "checkout")}


def test_the_sdist_has_what_is_needed_to_test_and_build_it(places):
    (unpacked,) = (places / "unpacked").iterdir()
    found = {str(file.relative_to(unpacked)) for file in unpacked.rglob("*") if file.is_file()}
    checkout = places / "checkout"
    wanted = {source for source, _ in packaged(checkout)} | {file.name for file in checkout.iterdir() if file.is_file()}
    for name in ("benchmarks", "docs", "examples", "tests"):
        wanted |= {str(f.relative_to(checkout)) for f in (checkout / name).rglob("*") if f.is_file()}
    assert {"Makefile", "constraints.txt"} <= wanted <= found


def test_a_wheel_made_of_the_sdist_is_that_of_the_checkout(places):
    records = []
    for wheel in (*places.glob("built/*.whl"), *places.glob("rebuilt/*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            (record,) = (name for name in archive.namelist() if name.endswith("/RECORD"))
            records.append(sorted(archive.read(record).decode().splitlines()))
    first, second = records
    assert first == second


def test_both_commands_are_the_same(places):
    (entries,) = places.glob("wheel/lib/*/site-packages/lit_spectral-*.dist-info/entry_points.txt")
    assert re.findall(r"^(\S+) = (\S+)$", entries.read_text(), re.MULTILINE) == [
        ("LightningCLI", "lit_spectral.cli:main"),
        ("lit-spectral", "lit_spectral.cli:main"),
    ]


LOOK = """
import importlib.util, json, lit_spectral
from lit_spectral.paths import config_file
names = ["callbacks", "configs", "datamodules", "benchmarks", "docs", "lit_spectral", "tests"]
found = {name: importlib.util.find_spec(f"lit_spectral.{name}") for name in names}
print(json.dumps({name: spec and spec.origin for name, spec in found.items()}
                 | {"itself": lit_spectral.__file__, "version": lit_spectral.__version__,
                    "config": str(config_file("configs/quickstart.yaml").absolute())}))
"""


@pytest.mark.parametrize("cwd", ["checkout", "decoys"])
@pytest.mark.parametrize("installed", ["none", "wheel", "editable", "strict"])
def test_its_parts_are_found_wherever_it_is_started_and_no_one_elses(places, installed, cwd):
    checkout = {"PYTHONPATH": str(places / "checkout")} if installed == "none" else {}
    found = json.loads(run(places / installed / "bin/python", "-c", LOOK, cwd=places / cwd, **checkout))
    assert found.pop("version") == lit_spectral.__version__
    folder = Path(found.pop("itself")).parent
    if installed == "wheel" and cwd != "checkout":
        assert folder.is_relative_to(places / "wheel")
        beside = folder
    elif installed == "strict" and cwd != "checkout":
        beside = folder  # a tree of links
    else:
        assert folder == places / "checkout/lit_spectral"
        beside = folder.parent
    assert found.pop("config") == str(beside / "configs/quickstart.yaml")
    assert found == {name: str(beside / name / "__init__.py") for name in BESIDE} | dict.fromkeys(
        ["benchmarks", "docs", "lit_spectral", "tests"]
    )


@pytest.mark.slow
def test_an_installed_wheel_helps_and_knows_its_files(places):
    """With libraries beside it, and none of the checkout's files in reach."""
    bin, elsewhere = places / "wheel/bin", places / "decoys"
    assert "quickstart" in run(bin / "lit-spectral", "--help", cwd=elsewhere)
    assert run(bin / "python", "-c", "import lit_spectral; lit_spectral.load", cwd=elsewhere) == ""
    installed = next(places.glob("wheel/lib/*/site-packages/lit_spectral"))
    assert {"py.typed", "configs/quickstart.yaml", "configs/papers.csv"} <= {
        str(file.relative_to(installed)) for file in installed.rglob("*")
    }
    assert any((installed / "evaluation" / "tasks").iterdir())


def test_what_names_a_version_names_that_of_the_package_or_of_constraints():
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    hooks = {repo["repo"].rpartition("/")[2]: repo for repo in yaml.safe_load(PRE_COMMIT.read_text())["repos"]}
    assert hooks["ruff-pre-commit"]["rev"] == f"v{pinned['ruff']}"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == lit_spectral.__version__


@pytest.mark.slow
@pytest.mark.parametrize(
    ("installed", "cwd", "command"),
    [
        ("wheel", "checkout", ["python", "-m", "lit_spectral"]),
        ("wheel", "decoys", ["lit-spectral"]),
        ("strict", "checkout", ["python", "-m", "lit_spectral.cli"]),
    ],
)
def test_a_shipped_config_is_read_wherever_the_command_is_started(places, installed, cwd, command):
    program, *rest = command
    flags = ["fit", "--config", "configs/quickstart.yaml", "--print_config"]
    said = run(places / installed / "bin" / program, *rest, *flags, cwd=places / cwd)
    assert "class_path: lit_spectral.datamodules.PythonDocs" in said
