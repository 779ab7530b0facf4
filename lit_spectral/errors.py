"""The one kind of error that is the user's to mend, and the parser that raises it."""

from __future__ import annotations

import argparse
import difflib
import errno
import itertools
import math
import re
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

__all__ = [
    "InputError",
    "Parser",
    "check_at_least",
    "check_at_most",
    "check_positive",
    "mistake",
    "nearest",
    "of_settings",
    "reason_of",
    "refusals_of",
]

# Characters of a line of the command line.
LONGEST = 300
# What the system says of a place that can't be written to, or has no room.
_PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}
_PLACES |= {errno.EEXIST, errno.ENAMETOOLONG, errno.EMFILE}
# And of one that can't be read, whoever gave it.
_SOURCES = {errno.ENOENT, errno.ELOOP, errno.EIO}
_LIBRARIES = {"lightning", "torch", "lightning_utilities", "jsonargparse", "fsspec"}
# Their parts that only settings lead to.
_EXTRAS = tuple(f"lightning.{part}." for part in ("pytorch.callbacks", "pytorch.profilers", "pytorch.loggers"))
_EXTRAS += ("lightning.fabric.loggers.", "lightning.pytorch.tuner.", "lightning.pytorch.utilities.model_summary.")
_EXTRAS += ("torch.nn.utils.", "torch.utils.tensorboard.", "fsspec.")
_REFUSALS = (ValueError, TypeError, KeyError, RuntimeError, ImportError, AttributeError, ArithmeticError)


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


def check_at_most(most: float, **settings: float | None) -> None:
    """InputError for a setting that is given and more than `most`."""
    for name, value in settings.items():
        if value is not None and value > most:
            raise InputError(f"{name} must be at most {most:g}, not {value}")


class Parser(argparse.ArgumentParser):
    """The parser of a verb, whose mistakes are InputErrors."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse's, which speaks of a flag that is missing before one that there isn't."""
        for arg in [] if self._subparsers else list(itertools.takewhile("--".__ne__, args or ())):
            flag = arg.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                self.error(f"unrecognized arguments: {flag}")
        parsed: argparse.Namespace = super().parse_args(args, namespace)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise it, with the verb's name and the nearest flag."""
        verb = self.prog.removeprefix("lit-spectral ").split()[0]
        if message.startswith("unrecognized arguments: "):
            unknown = message.split()[2].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            message = f"there is no {unknown}{nearest(unknown, flags)}"
        # By a function that has no name to speak of.
        message = re.sub(r"invalid functools\.partial\(.*\) value: (.*)", r"\1 can't be read; see --help", message)
        raise InputError(f"{verb}: {message}")


def nearest(given: str, known: Iterable[str]) -> str:
    """The remedy for a name that there isn't: `; did you mean X?`, or `; there are …` where none is near."""
    names = sorted(set(known))
    close = [name for name in names if name.lower() == given.lower()]
    close = close or difflib.get_close_matches(given, names, 1, cutoff=0.7)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(names)}" if names and sum(map(len, names)) < 200 else "; see --help"


@contextmanager
def refusals_of(what: str, remedy: str) -> Iterator[None]:
    """Make what a library raises over something that the user gave an InputError `what: reason; remedy`.

    What this package raised first, or a class of the user's, is a bug and stays what it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        first = _chain(error)[-1]
        module = _raised_in(first)
        # A call with arguments that there aren't fails where it is made.
        called = isinstance(first, TypeError) and re.search(r"\(\) (got an unexpected|missing) ", str(first))
        if not called and (module is None or module.partition(".")[0] == __name__.partition(".")[0]):
            raise
        raise InputError(f"{what}: {reason_of(first)}; {remedy}") from error


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line, with its type where that says more."""
    said = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, (KeyError, IndexError, AttributeError, AssertionError, ArithmeticError)) or not said:
        return f"{type(error).__name__} {said}".strip()
    return said


def mistake(error: BaseException | None) -> str | None:
    """The line for an exception that is the user's to mend, of at most 300 characters; None for a bug.

    Those are InputErrors, also within an exception of the parser's, what Lightning or torch say of settings that they
    are given, and a place that can't be written to.
    """
    chain = _chain(error)
    for each in chain:
        if isinstance(each, InputError):
            return _line(str(each))
    if chain and isinstance(chain[0], OSError) and chain[0].errno in _PLACES | _SOURCES:
        place = f"{chain[0].filename}: " if chain[0].filename else ""
        room = ", or make room there" if chain[0].errno in {errno.ENOSPC, errno.EDQUOT} else ""
        return _line(f"{place}{chain[0].strerror}; give another path{room}")
    if chain and "Could not determine home directory" in str(chain[-1]):
        return "a path begins with ~ and the name of a user that there isn't here; write it out"
    refused = next((each for each in reversed(chain) if _is_refusal(each)), None)
    if refused is not None and not (_raised_in(chain[-1]) or "lit_spectral").startswith("lit_spectral"):
        owner = (_raised_in(refused) or "").rpartition(".")[2]
        return _line(f"trainer: {owner} refused its settings: {reason_of(refused)}; give others, or leave it out")
    # Lightning's own for a user's mistake; not imported, since that takes seconds.
    theirs = [each for each in chain if type(each).__name__ == "MisconfigurationException"]
    return _line(str(theirs[-1])) if theirs else None


def _is_refusal(error: BaseException) -> bool:
    module = _raised_in(error) or ""
    # Of DDP's own errors only those of its arguments are the user's.
    wrapped = module.startswith("torch.nn.parallel.") and isinstance(error, TypeError)
    return wrapped or (module.startswith(_EXTRAS) and isinstance(error, _REFUSALS))


def of_settings(error: BaseException) -> str | None:
    """What Lightning or torch say of settings, of an exception that was raised while objects were made of them.

    None where this package, or a class of the user's, raised it first: that is a bug.
    """
    for each in (_chain(error)[-1], error):  # the parser raises anew what it met deep within
        module = _raised_in(each)
        if module is not None and module.split(".")[0] in _LIBRARIES and isinstance(each, _REFUSALS):
            return reason_of(each)
    return None


def _raised_in(error: BaseException) -> str | None:
    """The library's module that raised it; this package's; None for a file of the user's."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return None
    frame = traceback.tb_frame
    module = str(frame.f_globals.get("__name__", ""))
    place = Path(frame.f_code.co_filename)
    known = not place.is_absolute() or any(part in {"site-packages", "dist-packages"} for part in place.parts)
    standard = place.is_relative_to(sysconfig.get_path("stdlib"))
    return module if known or standard or module.startswith("lit_spectral") else None


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
