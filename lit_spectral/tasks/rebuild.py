"""Of which class a checkpoint's task is, and with which arguments it is built again."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from lit_spectral.errors import InputError
from lit_spectral.methods import Method

__all__ = ["arguments", "class_of", "rebuilt"]

T = TypeVar("T")


def rebuilt(saved: Mapping[str, Any], asked: type[T], path: str | os.PathLike[str], given: Mapping[str, Any]) -> T:
    """A checkpoint's task, without its model yet.

    Args:
        saved: of `saved_by_task`.
        asked: the class that it is to be of.
        path: where the checkpoint lies.
        given: arguments in place of those that it names.

    Raises:
        InputError: as `class_of` and `arguments`, naming the path.
    """
    try:
        return class_of(saved, asked)(**arguments(saved, given))
    except InputError as error:
        raise InputError(f"checkpoint: {os.fspath(path)}: {error}") from error


def class_of(saved: Mapping[str, Any], asked: type[T]) -> type[T]:
    """The task's class: that which was asked for, or one below it; none is imported for a name in a checkpoint.

    Raises:
        InputError: the checkpoint is of another one, or of one that doesn't take its arguments.
    """
    name = saved["task"]
    found = asked if name in {kind.__name__ for kind in asked.__mro__} else _named(asked, name)
    if found is None:
        raise InputError(f"it is of the task {name}, which is no {asked.__name__} that has been imported; import it")
    _check_known(f"the task {found.__name__}", found, saved["init"])
    return found


def arguments(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What to build the task with: its method and settings in the checkpoint, unless they are given.

    Raises:
        InputError: a method, or settings of one, that there aren't.
    """
    settings = dict(saved["method"])
    name = settings.pop("name", None)
    method = _named(Method, name)  # type: ignore[type-abstract]
    if method is None:
        raise InputError(f"it is of the method {name}, which is none that has been imported; import it")
    _check_known(f"the method {name}", method, settings)
    return {"method": method(**settings), **saved["init"], **given}


def _named(asked: type[T], name: Any) -> type[T] | None:
    """The class of that name below another; of several that which was defined last."""
    return next((kind for kind in reversed([*_below(asked)]) if kind.__name__ == name), None)


def _below(kind: type[T]) -> Iterator[type[T]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)


def _check_known(what: str, kind: Any, names: Iterable[Any]) -> None:
    parameters = inspect.signature(kind).parameters
    unknown = [str(name) for name in names if name not in parameters]
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise InputError(f"{what} has no {', '.join(unknown)} here; use the version that wrote the checkpoint")
