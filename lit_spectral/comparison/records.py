"""Runs that came to their end, a line each in a file that outlives their folders (`compare --records FILE`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from lit_spectral.comparison.results import Comparison, Run
from lit_spectral.comparison.variants import Variant
from lit_spectral.errors import InputError
from lit_spectral.files import write_text

__all__ = ["Records", "read_records"]

# Where a run lies is no part of what it is.
_PLACE = "--trainer.logger="


class _Line(NamedTuple):
    """A run, the config files' digests, and the task's metric, of which more may be better."""

    run: Run
    configs: list[str]
    metric: str
    higher_is_better: bool

    @property
    def key(self) -> str:
        return _key(self.run.command, self.configs)


class Records:
    """What `compare` has of earlier sittings, and adds to.

    Args:
        file: JSON, a line a run; may not be there yet.

    Raises:
        InputError: a line of it is none.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = {line.key: line for line in _lines(file)}

    def find(self, command: Sequence[str], configs: Sequence[str], folder: Path) -> Run | None:
        """The run of these flags of `fit` and config files, as if it lay in this folder."""
        line = self._known.get(_key(command, configs))
        return None if line is None else Run(**{**vars(line.run), "folder": folder, "command": list(command)})

    def add(self, run: Run, configs: Sequence[str], metric: str, higher_is_better: bool) -> None:
        """Write it down, in place of an earlier line of the same run; others may be adding to the file."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._file}.lock"):
            known = {line.key: line for line in _lines(self._file)}
            line = _Line(run, list(configs), metric, higher_is_better)
            known[line.key] = line
            write_text(self._file, "".join(map(_written, known.values())))


def read_records(file: Path) -> Comparison:
    """The comparison of all runs that a file has, whose folders are names and no more.

    Raises:
        InputError: there is no run in it, or a line is none.
    """
    lines = _lines(file)
    if not lines:
        raise InputError(f"{file} has no run")
    runs = [line.run for line in lines]
    compared = list(dict.fromkeys(run.variant for run in runs))
    return Comparison(compared, runs, lines[0].metric, lines[0].higher_is_better)


def _lines(file: Path) -> list[_Line]:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [_read(line, f"{file}: line {number}") for number, line in enumerate(text.splitlines(), 1)]


def _read(text: str, where: str) -> _Line:
    try:
        line = json.loads(text)
        given = line["variant"]
        shared, own = (tuple((flag, value) for flag, value in given[part]) for part in ("shared", "own"))
        variant = Variant(given["arm"], given["method"], shared, own, frozenset(given["swept"]))
        scales = line["scales"] and {float(scale): measured for scale, measured in line["scales"].items()}
        nowhere = Path(variant.name, f"seed_{line['seed']}")
        run = Run(variant, line["seed"], line["record"], nowhere, line["command"], scales)
        return _Line(run, line["configs"], line["metric"], line["higher_is_better"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{where} is no record of a run; remove it") from None


def _written(line: _Line) -> str:
    run = line.run
    variant = {**asdict(run.variant), "swept": sorted(run.variant.swept)}
    told = {"variant": variant, "seed": run.seed, "command": _placeless(run.command), "configs": line.configs,
            "metric": line.metric, "higher_is_better": line.higher_is_better, "record": run.record,
            "scales": run.scales}  # fmt: skip
    return json.dumps(told, ensure_ascii=False) + "\n"


def _placeless(command: Sequence[str]) -> list[str]:
    return [flag for flag in command if not flag.startswith(_PLACE)]


def _key(command: Sequence[str], configs: Sequence[str]) -> str:
    return json.dumps([_placeless(command), list(configs)])
