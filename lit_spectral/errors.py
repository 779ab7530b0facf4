"""The one kind of error that is the user's to mend, and the parser that raises it."""

from __future__ import annotations

import argparse
import difflib
import errno
import math
from collections.abc import Iterable
from typing import NoReturn

__all__ = ["InputError", "Parser", "check_at_least", "check_positive", "mistake", "nearest", "of_settings"]

# Characters of a line of the command line.
LONGEST = 300
# What the system says of a place that can't be written to, or has no room.
_PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}
_PLACES |= {errno.EEXIST, errno.ENAMETOOLONG, errno.EMFILE}
_LIBRARIES = {"lightning", "torch", "lightning_utilities"}
_REFUSALS = (ValueError, TypeError, KeyError, RuntimeError, ImportError, AttributeError)


class InputError(ValueError):
    """Something given by the user can't be used; the message says what, where and the remedy.

    The command line prints it as one line, without a traceback.
    """


def check_at_least(least: float, **settings: float | None) -> None:
    """InputError for a setting that is given and not finite or less than `least`."""
    for name, value in settings.items():
        if value is not None and not least <= value < math.inf:
            raise InputError(f"{name} must be at least {least}{' and finite' * (value == math.inf)}, not {value}")


def check_positive(**settings: float | None) -> None:
    """InputError for a setting that is given and not finite and above 0."""
    for name, value in settings.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} must be finite and above 0, not {value}")


class Parser(argparse.ArgumentParser):
    """The parser of a verb, whose mistakes are InputErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise it, with the verb's name and the nearest flag."""
        verb = self.prog.removeprefix("lit-spectral ").split()[0]
        if message.startswith("unrecognized arguments: "):
            unknown = message.split()[2].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            message = f"there is no {unknown}{nearest(unknown, flags)}"
        raise InputError(f"{verb}: {message}")


def nearest(given: str, known: Iterable[str]) -> str:
    """The remedy for a name that there isn't: `; did you mean X?`, or `; there are …` where none is near."""
    names = sorted(set(known))
    close = difflib.get_close_matches(given, names, 1, cutoff=0.7)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(names)}" if names and sum(map(len, names)) < 200 else "; see --help"


def mistake(error: BaseException | None) -> str | None:
    """The line for an exception that is the user's to mend, of at most 300 characters; None for a bug.

    Those are InputErrors, also within an exception of the parser's, what Lightning or torch say of settings that they
    are given, and a place that can't be written to.
    """
    chain = _chain(error)
    for each in chain:
        if isinstance(each, InputError):
            return _line(str(each))
    if chain and isinstance(chain[0], OSError) and chain[0].errno in _PLACES:
        place = f"{chain[0].filename}: " if chain[0].filename else ""
        return _line(f"{place}{chain[0].strerror}; give another place, or make room there")
    # Lightning's own for a user's mistake; not imported, since that takes seconds.
    theirs = [each for each in chain if type(each).__name__ == "MisconfigurationException"]
    return _line(str(theirs[-1])) if theirs else None


def of_settings(error: BaseException) -> str | None:
    """What Lightning or torch say of settings, of an exception that was raised while objects were made of them.

    None where this package, or a class of the user's, raised it first: that is a bug.
    """
    first = _chain(error)[-1]
    traceback = first.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    of_them = module.split(".")[0] in _LIBRARIES and isinstance(first, _REFUSALS)
    return str(first) if of_them else None


def _chain(error: BaseException | None) -> list[BaseException]:
    """An exception and those that it was raised from or while handling, the first of all last."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _line(message: str) -> str:
    """It as one line; the middle of a long one is left out, since what is wrong comes first and the remedy last."""
    line = " ".join(message.split())
    longest = LONGEST - len("error: ")
    return line if len(line) <= longest else f"{line[: longest - 121]} … {line[-118:]}"
