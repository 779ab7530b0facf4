"""The command line: a verb, in this process, and what its end is to whoever started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

from lit_spectral import help_screens
from lit_spectral.errors import InputError, mistake, nearest
from lit_spectral.terminal import VERBOSE, print_anything, speak
from lit_spectral.verbs import LIGHTNING, SYNONYMS, VERBS

if TYPE_CHECKING:
    from lit_spectral.lightning_cli import SpectralCLI

__all__ = ["main", "run"]

# <linux/prctl.h>: the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1
HELP = {"-h", "--help"}


def run(args: list[str] | None = None, verbose: bool = False) -> SpectralCLI:
    """Run a subcommand of LightningCLI's (`fit`, `validate`, `test`, `predict`); returns the finished command line.

    Args:
        args: as on the command line; None for `sys.argv`.
        verbose: show all that libraries say, and Lightning's own bars and tables.
    """
    args = sys.argv[1:] if args is None else args
    speak(verbose, fits="fit" in args)
    from lit_spectral.lightning_cli import SpectralCLI  # when it is needed: Lightning takes seconds

    return SpectralCLI(args)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a mistake in what was given is one line on stderr and exit status 2."""
    args = sys.argv[1:] if args is None else args
    verbose = VERBOSE in args
    args = [arg for arg in args if arg != VERBOSE]
    print_anything()
    _end_with_starter()
    try:
        _check_verb(args)
        if args[0] in HELP:
            print(help_screens.of_all_verbs())
            sys.exit()  # as other --help do
        elif args[0] in LIGHTNING and HELP & set(args) and not verbose:
            print(help_screens.of_lightning(args[0]))
            sys.exit()
        elif args[0] in VERBS:
            speak(verbose)
            VERBS[args[0]].run(args[1:])
        else:
            run(args, verbose)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning stops with 1 and 0; whoever started this is to know what it was.
        if type(stop).__name__ == "SIGTERMException":  # Lightning's, not imported
            sys.exit(128 + signal.SIGTERM)
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)
        raise
    except Exception as error:
        line = mistake(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def _check_verb(args: list[str]) -> None:
    verbs = [*LIGHTNING, *VERBS]
    if not args:
        raise InputError(f"no subcommand is given; there are {', '.join(verbs)}, each with --help")
    if not args[0].startswith("-") and args[0] not in verbs:
        meant = SYNONYMS.get(args[0])
        raise InputError(
            f"there is no subcommand {args[0]}" + (f"; {meant} is it" if meant else nearest(args[0], verbs))
        )


def _end_with_starter() -> None:
    """Have the kernel end this process of several with the one that started it, for which it would wait for long."""
    if int(os.environ.get("LOCAL_RANK", "0")) and sys.platform == "linux":
        starter = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != starter:  # it has just gone
            sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
