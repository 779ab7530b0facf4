"""Which repairs are swept, over which values: `--scale 0:1:0.1 --ball 0.5,1,q2`."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from lit_spectral.errors import InputError
from lit_spectral.updates.mending import REPAIRS

__all__ = ["Sweep", "add_sweeps", "sweeps_of"]

# Of one repair: each takes a measurement.
MOST = 200


class Sweep(NamedTuple):
    """A repair of `REPAIRS`, and its values, each once, in the order in which they were given."""

    repair: str
    values: tuple[Any, ...]


def add_sweeps(parser: ArgumentParser) -> None:
    """A flag for each repair of `mend`."""
    group = parser.add_argument_group("sweeps, each value on its own: A,B,… or FIRST:LAST:STEP")
    for name, repair in REPAIRS.items():
        group.add_argument(f"--{name}", type=str, metavar=f"{repair.metavar},…", help=f"as mend: {repair.about}")


def sweeps_of(given: Mapping[str, Any]) -> list[Sweep]:
    """Those that were asked for, a flag each; InputError for values that the repair refuses, none, or one twice."""
    asked = {name: given.get(name) for name in REPAIRS}
    return [Sweep(name, _values(name, str(text))) for name, text in asked.items() if text is not None]


def _values(name: str, text: str) -> tuple[Any, ...]:
    values = [REPAIRS[name].read(each) for each in _texts(name, text)]
    twice = next((value for number, value in enumerate(values) if value in values[:number]), None)
    if twice is not None:
        raise InputError(f"{name}: {twice} is there twice in {text}; give each value once")
    return tuple(values)


def _texts(name: str, text: str) -> list[str]:
    """The values one by one, as `REPAIRS` reads them."""
    if not re.fullmatch(r"[^:,{]*:[^:,{]*:[^:,{]*", text):
        found = [each.strip() for each in text.split(",")]
        if not all(found):
            raise InputError(f"{name}: {text!r} lacks a value; give them as 0.5,1,2")
    else:
        try:
            # Decimals, since ten times the float 0.1 isn't 1.
            first, last, step = map(Decimal, text.split(":"))
            count = int((last - first) / step) + 1
        except (InvalidOperation, ZeroDivisionError, ValueError, OverflowError):
            count = 0
        if count < 1:
            raise InputError(f"{name}: {text} holds no value; give FIRST:LAST:STEP, as 0:1:0.1")
        found = [f"{(first + number * step).normalize():f}" for number in range(min(count, MOST + 1))]
    if len(found) > MOST:
        raise InputError(f"{name}: {text} has more than {MOST} values, which would take too long; give fewer")
    return found
