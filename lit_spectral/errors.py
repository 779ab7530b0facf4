"""The one kind of error that is the user's to mend, and the parser that raises it."""

from __future__ import annotations

import argparse
from typing import NoReturn

__all__ = ["InputError", "Parser"]


class InputError(ValueError):
    """Something given by the user can't be used; the message says what, where and the remedy.

    The command line prints it as one line, without a traceback.
    """


class Parser(argparse.ArgumentParser):
    """The parser of a verb, whose mistakes are InputErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise it, with the verb's name."""
        raise InputError(f"{self.prog.split()[-1]}: {message}")
