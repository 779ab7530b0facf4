"""`lit-spectral methods`, `tasks`, `data` and `configs`: what there is, a line each, as it says of itself."""

from __future__ import annotations

import inspect
from importlib.resources import files
from types import ModuleType
from typing import Any

from lit_spectral.errors import Parser

__all__ = ["configs", "data", "data_modules", "method_classes", "methods", "task_classes", "tasks"]


def methods(args: list[str]) -> None:
    """Print the names that `--model.method` takes."""
    _parse("methods", "What --model.method takes; --model.method.help NAME has the settings of one.", args)
    _print_classes(method_classes())


def tasks(args: list[str]) -> None:
    """Print the names that `--model` takes."""
    _parse("tasks", "What --model takes; --model.help NAME has the settings of one.", args)
    _print_classes(task_classes())


def data(args: list[str]) -> None:
    """Print the names that `--data` takes."""
    _parse("data", "What --data takes; --data.help NAME has the settings of one.", args)
    _print_classes(data_modules())


def configs(args: list[str]) -> None:
    """Print the files that `--config` finds without being given them."""
    _parse("configs", "What --config takes beside files of one's own.", args)
    shipped: list[Any] = [path for path in files("lit_spectral.configs").iterdir() if path.name.endswith(".yaml")]
    heads = {f"configs/{path.name}": path.read_text(encoding="utf-8").partition("\n")[0] for path in shipped}
    _print({name: heads[name].removeprefix("# ").partition(". ")[0].rstrip(".") for name in sorted(heads)})


def method_classes() -> dict[str, type]:
    """Methods that train, by name."""
    from lit_spectral import methods as package

    return {n: kind for n, kind in _classes(package, package.Method).items() if kind.trains}  # type: ignore[attr-defined]


def task_classes() -> dict[str, type]:
    """Tasks, by name."""
    from lit_spectral import tasks as package

    return _classes(package, package.Task)


def data_modules() -> dict[str, type]:
    """Data modules, by name."""
    from lit_spectral import datamodules as package

    return _classes(package, package.TextDataModule)


def _classes(package: ModuleType, base: type) -> dict[str, type]:
    """What a package exports of a kind, but for what its classes have in common, which is beside their base."""
    found = {name: getattr(package, name) for name in sorted(package.__all__, key=str.lower)}
    return {
        name: kind
        for name, kind in found.items()
        if inspect.isclass(kind) and issubclass(kind, base) and kind.__module__ != base.__module__
    }


def _parse(verb: str, about: str, args: list[str]) -> None:
    Parser(prog=f"lit-spectral {verb}", description=about, allow_abbrev=False).parse_args(args)


def _print_classes(classes: dict[str, type]) -> None:
    _print({name: (inspect.getdoc(kind) or "").partition("\n")[0] for name, kind in classes.items()})


def _print(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    for name, about in lines.items():
        print(f"{name:<{width}}  {about}")
