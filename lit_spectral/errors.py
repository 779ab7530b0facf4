"""The one kind of error that is the user's to mend."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Something given by the user can't be used; the message says what, where and the remedy.

    The command line prints it as one line, without a traceback.
    """
