"""What the command line shows: its rule for everybody's notes, warnings and bars stands here and nowhere else."""

from __future__ import annotations

import io
import logging
import os
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any

__all__ = ["VERBOSE", "is_verbose", "print_anything", "speak"]

# The flag of every verb that shows all there is.
VERBOSE = "--verbose"
# Whose warnings are for the user; other libraries' are for who calls them, which is this package.
_HEARD = ("lit_spectral", "lightning")
_DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
# What Lightning warns of and this package has seen to: the data's processes, and who owns a folder (RunFolder).
_SEEN_TO = (
    ".*does not have many workers",
    "The number of training batches .* is smaller than the logging interval",
    "You passed in a `val_dataloader` but have no `validation_step`",  # a head that is fitted
    r"Found \d+ module\(s\) in eval mode at the start of training",
    "Metric `.*` will save all targets and predictions",
    "(Checkpoint directory|Experiment logs directory) .* exists and is not empty",
    ".*provide both args and command line arguments",
)
# Of what a checkpoint callback keeps, to a verb that writes none.
_OF_FIT = "The dirpath has changed from"


def print_anything() -> None:
    """From now on characters that standard output's encoding lacks, such as Δ and σ, are printed as `?`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr writes their numbers anyway
        sys.stdout.reconfigure(errors="replace")


def speak(verbose: bool = False, fits: bool = True) -> None:
    """From now on this process shows what its user can act on, and with `verbose` all that any library says.

    By default that is this package's warnings and Lightning's, one line each, errors of every library, and bars of
    what takes longer than two seconds; no notes, and no deprecations but those in the user's own files. To be called
    before libraries are imported: Lightning leaves its notes to a handler that it finds.

    Args:
        verbose: whether to show everything.
        fits: whether checkpoints are to be written.
    """
    root, ours = logging.getLogger(), logging.getLogger("lit_spectral")
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, _Lines)]
    root.addHandler(_Lines(verbose))
    # Importing it puts a handler there, whether or not there is one already.
    logging.getLogger("lightning").addHandler = lambda hdlr: None  # type: ignore[method-assign]
    ours.setLevel(logging.INFO)  # what of it is shown, the handler says; others may listen too
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if verbose:
        return
    os.environ.setdefault("TQDM_DELAY", "2")  # seconds; read where tqdm is imported
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for message in (*_SEEN_TO, *(() if fits else (_OF_FIT,))):
        warnings.filterwarnings("ignore", message)
    warnings.showwarning = _show_warning


def is_verbose() -> bool:
    """Whether this process was told to show everything."""
    return any(isinstance(handler, _Lines) and handler.verbose for handler in logging.getLogger().handlers)


class _Lines(logging.Handler):
    """Prints records on standard error as it is then, above a live bar: those of one process of several."""

    def __init__(self, verbose: bool) -> None:
        super().__init__(logging.INFO)
        self.verbose = verbose

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show the record."""
        if record.levelno >= logging.ERROR:
            return True
        if os.environ.get("LOCAL_RANK", "0") != "0" and record.name.startswith("lit_spectral"):
            return False
        if self.verbose:
            return True
        heard = record.name.split(".")[0] in _HEARD or record.name == "py.warnings" or not _is_library(record.pathname)
        return heard and record.levelno >= logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        try:
            print(self.format(record), file=sys.stderr)
        except Exception:  # as every handler: a note must not end a run
            self.handleError(record)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """One line, without the place in somebody's code; of deprecations, those in the user's own files."""
    if not (issubclass(category, _DEPRECATIONS) and _is_library(filename)):
        print("warning:", " ".join(str(message).split()), file=file or sys.stderr)


def _is_library(file: str) -> bool:
    places = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")} | {str(Path(__file__).parent)}
    return any(Path(file).is_relative_to(place) for place in places) or "site-packages" in Path(file).parts
