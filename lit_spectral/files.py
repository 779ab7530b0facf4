"""Files that appear whole or not at all, and entries of a folder that several processes and users share."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from lit_spectral.errors import InputError

__all__ = ["SCRATCH", "check_place", "locked", "write_text", "written"]

log = logging.getLogger(__name__)

# Ends the name of what is not whole yet.
SCRATCH = ".part"


@contextmanager
def locked(*entries: Path) -> Iterator[OSError | None]:
    """Hold the locks of entries of one folder: one process makes them, and others wait, which they say.

    What processes that ended too soon have left in the folder is removed first.

    Yields:
        None, or why the locks can't be had, as in a folder that can't be written to. Nothing may be
        written there then.
    """
    trouble = None
    with ExitStack() as stack:
        try:
            for folder in {entry.parent for entry in entries}:
                (folder / "locks").mkdir(parents=True, exist_ok=True)
                _remove_leftovers(folder)
            # In one order everywhere, or two processes could each wait for the other's.
            for entry in sorted(entries):
                stack.enter_context(_acquired(entry))
        except OSError as error:
            stack.close()
            trouble = error
        yield trouble


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path beside `path`, for a file or folder that takes its place, flushed, at the end.

    For one process at a time: `path` is `locked`, or lies in a folder of this process alone.

    Who may read the folder may read it. After an exception there is neither.
    """
    scratch = _scratch(path)
    try:
        yield scratch
        allowed = path.parent.stat().st_mode
        for made in [*scratch.rglob("*"), scratch]:
            # Some libraries write for their user alone.
            made.chmod(allowed & (0o777 if made.is_dir() else 0o666))
            _flush(made)
        os.replace(scratch, path)
        _flush(path.parent)
    except BaseException:
        with suppress(OSError):
            _remove(scratch)
        raise


def check_place(file: Path, setting: str) -> None:
    """InputError unless a file can be written there, which is to be seen before the work and not after it.

    Makes its folder.
    """
    try:
        if file.is_dir():
            raise InputError(f"{setting}: {file} is a folder; give a file")
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise InputError(f"{setting}: {file} can't be written ({error.strerror}); give another place") from error


def write_text(file: Path, text: str) -> None:
    """Write a file of UTF-8 as `written`, where one process writes alone. Makes the folder too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written(file) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")  # line ends as they are given


def _scratch(entry: Path) -> Path:
    return entry.with_name(entry.name + SCRATCH)


def _lock(entry: Path) -> BaseFileLock:
    # Another user is to open it too.
    return FileLock(entry.parent / "locks" / f"{entry.name}.lock", mode=0o666)


@contextmanager
def _acquired(entry: Path) -> Iterator[None]:
    lock = _lock(entry)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("waiting for %s, which another process is making", entry)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    for scratch in folder.glob(f"*{SCRATCH}"):
        entry = scratch.with_name(scratch.name.removesuffix(SCRATCH))
        # Timeout is an OSError: who makes it lives.
        with suppress(OSError), _lock(entry).acquire(timeout=0):
            _remove(scratch)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
