"""The one kind of error that is the user's to mend, and the parser that raises it."""

from __future__ import annotations

import argparse
import difflib
import errno
from collections.abc import Iterable
from typing import NoReturn

__all__ = ["InputError", "Parser", "mistake", "nearest"]

# Characters of a line of the command line.
LONGEST = 300
# What the system says of a place that can't be written to, or has no room.
_PLACES = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG", "EMFILE")
}
_LIBRARIES = {"lightning", "torch", "lightning_utilities"}


class InputError(ValueError):
    """Something given by the user can't be used; the message says what, where and the remedy.

    The command line prints it as one line, without a traceback.
    """


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
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for each in chain:
        if isinstance(each, InputError):
            return _line(str(each))
    if chain and isinstance(chain[0], OSError) and chain[0].errno in _PLACES:
        place = f"{chain[0].filename}: " if chain[0].filename else ""
        return _line(f"{place}{chain[0].strerror}; give another place, or make room there")
    if chain and type(chain[0]).__name__ == "MisconfigurationException":
        return _line(str(chain[0]))
    return None


def of_settings(error: Exception) -> bool:
    """Whether an exception that was raised while settings were turned into objects is on those settings.

    It is where Lightning or torch raised it, and a bug where this package or a class of the user's did.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    return module.split(".")[0] in _LIBRARIES and isinstance(error, (ValueError, TypeError, KeyError, RuntimeError))


def _line(message: str) -> str:
    """It as one line; the middle of a long one is left out, since what is wrong comes first and the remedy last."""
    line = " ".join(message.split())
    longest = LONGEST - len("error: ")
    return line if len(line) <= longest else f"{line[: longest - 121]} … {line[-118:]}"
