"""Runs that came to their end, a line each in a file that outlives their folders (`compare --records FILE`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
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
    """A run, its place among what it was compared with, the config files' digests, and the task's metric."""

    run: Run
    place: int
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

    def find(self, variant: Variant, folder: Path, command: Sequence[str], configs: Sequence[str]) -> Run | None:
        """The run of these flags of `fit` and config files, as this variant's, as if it lay in this folder.

        What it was called then, and in which sweep it stood, is of no matter.
        """
        line = self._known.get(_key(command, configs))
        if line is None:
            return None
        return replace(line.run, variant=variant, folder=folder, command=list(command))

    def add(self, run: Run, place: int, configs: Sequence[str], metric: str, higher_is_better: bool) -> None:
        """Write it down, in place of an earlier line of the same run; others may be adding to the file.

        Args:
            run: to be written.
            place: of its variant among those compared; that at 0 is the reference.
            configs: digests of its config files.
            metric: the task's.
            higher_is_better: of the metric.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._file}.lock"):
            known = {line.key: line for line in _lines(self._file)}
            line = _Line(run, place, list(configs), metric, higher_is_better)
            known[line.key] = line
            write_text(self._file, "".join(map(_written, known.values())))


def read_records(file: Path) -> Comparison:
    """The comparison of all runs that a file has, whose folders are names and no more.

    Raises:
        InputError: there is no run in it, a line is none, or two are of one run, with other config files say.
    """
    lines = _lines(file)
    if not lines:
        raise InputError(f"{file} has no run")
    runs = [line.run for line in lines]
    for (name, seed), count in Counter((run.variant.name, run.seed) for run in runs).items():
        if count > 1:
            raise InputError(f"{file} has {name}, seed {seed}, {count} times; keep one line of it")
    # Whichever came to its end first.
    compared = list(dict.fromkeys(line.run.variant for line in sorted(lines, key=lambda line: line.place)))
    return Comparison(compared, runs, lines[0].metric, lines[0].higher_is_better)


def _lines(file: Path) -> list[_Line]:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [_read(line, f"{file}: line {number}") for number, line in enumerate(text.splitlines(), 1)]


def _read(text: str, where: str) -> _Line:
    try:
        line = json.loads(text)
        given = line["variant"]
        shared, own = (tuple((flag, value) for flag, value in given[part]) for part in ("shared", "own"))
        swept = frozenset(given["swept"]) & {flag for flag, _ in shared}
        variant = Variant(given["arm"], given["method"], shared, own, swept)
        scales = line["scales"] and {float(scale): measured for scale, measured in line["scales"].items()}
        nowhere = Path(variant.name, f"seed_{line['seed']}")
        run = Run(variant, line["seed"], line["record"], nowhere, line["command"], scales)
        return _Line(run, line["place"], line["configs"], line["metric"], line["higher_is_better"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{where} is no record of a run; remove it") from None


def _written(line: _Line) -> str:
    run = line.run
    variant = {**asdict(run.variant), "swept": sorted(run.variant.swept)}
    told = {"variant": variant, "seed": run.seed, "place": line.place, "command": _placeless(run.command),
            "configs": line.configs, "metric": line.metric, "higher_is_better": line.higher_is_better,
            "record": run.record, "scales": run.scales}  # fmt: skip
    return json.dumps(told, ensure_ascii=False) + "\n"


def _placeless(command: Sequence[str]) -> list[str]:
    return [flag for flag in command if not flag.startswith(_PLACE)]


def _key(command: Sequence[str], configs: Sequence[str]) -> str:
    return json.dumps([_placeless(command), list(configs)])
