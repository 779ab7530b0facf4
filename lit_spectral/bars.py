"""Progress bars of rich's for people: none where nobody watches, since rich leaves a blank line for each there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import rich
from rich import progress

__all__ = ["Progress", "track"]

T = TypeVar("T")


class Progress(progress.Progress):
    """As rich's, without a trace where output is no terminal."""

    def __init__(self, *columns: Any, disable: bool = False, **options: Any) -> None:
        console = options.get("console") or rich.get_console()
        watched = console.is_interactive or console.is_jupyter
        super().__init__(*columns, disable=disable or not watched, **options)


def track(sequence: Iterable[T], description: str, total: float | None = None, **options: Any) -> Iterator[T]:
    """What a sequence has, with a bar that goes when it ends; `total` is how many, where it can't tell itself."""
    with Progress(transient=True, **options) as bar:
        yield from bar.track(sequence, total, description=description)
