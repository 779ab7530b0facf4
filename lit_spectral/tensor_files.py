"""Tensors kept in the cache: files with a checksum."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_spectral.files import locked, written

__all__ = ["DamagedError", "content_digest", "kept", "read", "write"]

log = logging.getLogger(__name__)


class DamagedError(ValueError):
    """A file does not hold what was written."""


def content_digest(*parts: Tensor | str) -> str:
    """A hash of the tensors' shapes, dtypes and bytes, and of texts between them."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str):
            digest.update(f"{part}\0".encode())
        else:
            digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
            # numpy knows no bfloat16: hash the bytes as they lie.
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file, or None where there is none.

    Raises:
        DamagedError: it holds something else than was written.
        OSError: it can't be read, being another user's for one; it may well be whole.
    """
    try:
        path.open("rb").close()  # whose errors tell these cases apart
    except FileNotFoundError:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("checksum")
    except (SafetensorError, ValueError) as error:
        raise DamagedError(str(error)) from error
    if _checksum(tensors) != expected:
        raise DamagedError("checksum differs")
    return tensors


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Keep tensors in a file, whose lock is held.

    Raises:
        OSError: it can't be written; there is what was there before.
    """
    with written(path) as scratch:
        try:
            save_file(dict(tensors), scratch, metadata={"checksum": _checksum(tensors)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def kept(path: Path, make: Callable[[], dict[str, Tensor]], what: str) -> dict[str, Tensor]:
    """The tensors of a file of the cache, or else those that `make` gives, which are kept there if they can be.

    One process makes them, and others wait. `what` they are is for the line that says that they can't be kept.
    """
    with suppress(DamagedError, OSError):
        if (found := read(path)) is not None:
            return found
    with locked(path) as trouble:
        try:  # what another process wrote while this one waited
            if (found := read(path)) is not None:
                return found
        except DamagedError as error:
            log.warning("%s is damaged (%s); it is made again", path, error)
        except OSError as error:  # it may be whole, and is left as it is
            trouble = error
        found = make()
        try:
            if trouble is not None:
                raise trouble
            write(path, found)
        except OSError as error:
            log.warning("%s can't be kept in %s (%s); the next run makes it anew", what, path.parent, error)
    return found


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return content_digest(*(tensors[name] for name in sorted(tensors)))
