"""Where files are: what this package keeps, and the configs that it ships."""

from __future__ import annotations

import codecs
import difflib
import locale
import logging
import os
from importlib.resources import files
from pathlib import Path

from lit_spectral.errors import InputError

__all__ = ["cache_folder", "config_file"]

log = logging.getLogger(__name__)


def cache_folder(name: str) -> Path:
    """A folder below `$LIT_SPECTRAL_CACHE` (default `~/.cache/lit_spectral`), made if missing.

    One that can't be made where nothing may be written, or that is read-only, is for its users to meet.

    Raises:
        InputError: it can't be a folder, or there is no home to have it in.
    """
    try:
        given = os.environ.get("LIT_SPECTRAL_CACHE")
        folder = (Path(given).expanduser() if given else Path.home() / ".cache" / "lit_spectral") / name
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, RuntimeError) as error:  # RuntimeError: there is no such home
        raise InputError(f"the cache can't be made ({error}); set LIT_SPECTRAL_CACHE to a folder") from error
    except OSError as error:
        log.debug("%s can't be made: %s", folder, error)
    return folder


def config_file(given: str) -> Path:
    """The file that `--config` names: one's own, or of `configs/NAME.yaml` that there isn't the one that ships.

    Raises:
        InputError: there is neither; a file with text that would be read in another encoding than UTF-8.
    """
    own, file = os.path.expanduser(given), Path(given)
    if os.path.isdir(own):
        raise InputError(f"config: {given} is a folder; give a file")
    if os.path.exists(own):
        _check_encoding(Path(own))
        return Path(own)
    shipped = {path.name: Path(str(path)) for path in files("lit_spectral.configs").iterdir()}
    shipped = {name: path for name, path in shipped.items() if path.suffix == ".yaml"}
    if file.parts == ("configs", file.name) and file.name in shipped:
        log.info("config: %s is the one that ships with lit-spectral", given)
        return shipped[file.name]
    close = difflib.get_close_matches(file.name, shipped, 1) or ["quickstart.yaml"]
    raise InputError(
        f"config: there is no file {given} in {os.getcwd()}; give one, or one that ships, such as configs/{close[0]}"
    )


def _check_encoding(file: Path) -> None:
    """The parser reads in the locale's encoding, which mistakes all but ASCII where that isn't UTF-8."""
    encoding = locale.getpreferredencoding(False)
    if codecs.lookup(encoding).name != "utf-8" and file.is_file() and not file.read_bytes().isascii():
        raise InputError(
            f"config: {file} holds more than ASCII, which this locale reads as {encoding}; set PYTHONUTF8=1"
        )
