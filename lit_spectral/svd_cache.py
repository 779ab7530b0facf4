"""Spectra of a backbone's weights, computed once and kept on disk.

A file's name is a hash of the weight's content and of what was asked of it, so that a fine-tuned,
re-quantised or transposed weight never meets another's spectrum.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_spectral import linalg
from lit_spectral.linalg import Part, SingularTriplets
from lit_spectral.paths import cache_folder

__all__ = ["SVDCache", "content_digest"]

log = logging.getLogger(__name__)

# Part of every file's name: raise it when what a file holds changes, so that no release reads another's.
FORMAT = 1


class SVDCache:
    """Parts of SVDs by weight content, part, rank and seed.

    Args:
        folder: where the files lie; default `spectra` in the package's cache folder. Files are
            written under a temporary name and moved, so a reader never sees half of one. One that
            fails its checksum is computed again.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder("spectra")
        self.folder.mkdir(parents=True, exist_ok=True)

    def singular_values(self, weight: Tensor) -> Tensor:
        """`linalg.singular_values`, float32 on the CPU."""
        found = self._get(weight, "values", lambda: {"values": linalg.singular_values(weight)})
        return found["values"]

    def singular_triplets(self, weight: Tensor, part: Part, rank: int, seed: int = 0) -> SingularTriplets:
        """`linalg.singular_triplets`, float32 on the CPU; the seed matters to `random` alone."""
        name = f"{part}-rank{rank}" + (f"-seed{seed}" if part == "random" else "")
        compute = lambda: linalg.singular_triplets(weight, part, rank, seed)._asdict()  # noqa: E731
        return SingularTriplets(**self._get(weight, name, compute))

    def _get(self, weight: Tensor, part: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = self.folder / f"{content_digest(weight)}-{part}-v{FORMAT}.safetensors"
        if path.exists():
            try:
                return _read(path)
            except (SafetensorError, ValueError, OSError, KeyError) as error:
                log.warning("%s is damaged (%s); computing it again", path, error)
        tensors = {name: tensor.float().cpu().contiguous() for name, tensor in compute().items()}
        _write(path, tensors)
        return tensors


def content_digest(*tensors: Tensor) -> str:
    """A hash of the tensors' shapes, dtypes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        # numpy knows no bfloat16: hash the bytes as they lie.
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        expected = (file.metadata() or {}).get("checksum")
    if content_digest(*(tensors[name] for name in sorted(tensors))) != expected:
        raise ValueError("checksum differs")
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    checksum = content_digest(*(tensors[name] for name in sorted(tensors)))
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(descriptor)
    try:
        save_file(tensors, temporary, metadata={"checksum": checksum})
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
