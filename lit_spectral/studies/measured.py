"""What a study has measured: a line each in a file, so that a study that was broken off goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_spectral.errors import InputError
from lit_spectral.files import write_text
from lit_spectral.studies.finished import Adapter

__all__ = ["Measured"]


class Measured:
    """From what was measured to what came of it, by name of task; several processes may add to one file.

    Args:
        file: JSON, a line each; may not be there yet.

    Raises:
        InputError: a line of it is none.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = _lines(file)

    def find(self, adapters: Sequence[Adapter], how: Mapping[str, Any]) -> dict[str, dict[str, float]] | None:
        """All that was logged, by task; None where it wasn't measured of these very checkpoints.

        Args:
            adapters: one, or those that were merged.
            how: they were merged; nothing for one alone.
        """
        found: dict[str, dict[str, float]] | None = self._known.get(_key(_about(adapters), how), {}).get("logged")
        return found

    def add(
        self, adapters: Sequence[Adapter], how: Mapping[str, Any], logged: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Write it down at once: the file is whole at any time."""
        line = {"adapters": _about(adapters), "how": dict(how), "logged": logged}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._file}.lock"):
            self._known = {**_lines(self._file), _key(line["adapters"], how): line}
            written = (json.dumps(each, ensure_ascii=False) for each in self._known.values())
            write_text(self._file, "".join(f"{each}\n" for each in written))


def _about(adapters: Sequence[Adapter]) -> dict[str, Any]:
    return {each.task: {"method": each.method, "seed": each.seed, "checkpoint": each.digest} for each in adapters}


def _key(adapters: Mapping[str, Any], how: Mapping[str, Any]) -> str:
    """By the checkpoints, wherever they lie and whatever the method is called."""
    return json.dumps([sorted((task, about["checkpoint"]) for task, about in adapters.items()), how], sort_keys=True)


def _lines(file: Path) -> dict[str, dict[str, Any]]:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return dict(_read(line, f"{file}: line {number}") for number, line in enumerate(text.splitlines(), 1))


def _read(text: str, where: str) -> tuple[str, dict[str, Any]]:
    try:
        line = json.loads(text)
        key = _key(line["adapters"], line["how"])
        if line["logged"].keys() != line["adapters"].keys():
            raise ValueError("tasks are lacking")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{where} is nothing that merge-study has measured; remove it") from None
    return key, line
