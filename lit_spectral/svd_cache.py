"""Spectra of a backbone's weights, computed once and kept on disk.

A file's name is a hash of the weight's content and of what was asked of it, so that a fine-tuned,
re-quantised or transposed weight never meets another's spectrum.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from filelock import FileLock
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_spectral.errors import InputError
from lit_spectral.linalg import Part, SingularTriplets
from lit_spectral.partial_svd import check_weight, partial_svd, singular_values
from lit_spectral.paths import cache_folder

__all__ = ["SVDCache", "content_digest"]

log = logging.getLogger(__name__)

# Part of every file's name: raise it when what a file holds changes, so that no release reads another's.
FORMAT = 2
# Bytes that a batch may take while it is decomposed. A CPU gains nothing by what its caches don't hold.
WORKSPACE = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}


class SVDCache:
    """Parts of SVDs by weight content, part and seed, shared by methods, ranks and processes.

    Args:
        folder: where the files lie; default `spectra` in the package's cache folder. Files are
            written under a temporary name and moved, so a reader never sees half of one. One that
            fails its checksum is computed again. Who computes an entry holds its lock, in `locks`;
            others wait, then read what was written.

    Both methods take weights by their module's path and raise InputError, with that path, for one
    that holds NaN or infinity or has no such rank. They compute what is not on disk in batches of
    one shape, with a progress bar, and log one line.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder("spectra")
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)

    def singular_values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All singular values of each weight (o, i), largest first, (min(o, i),), float32 on the CPU."""
        found = self._get(weights, "values", 1, lambda stacked: {"sigma": singular_values(stacked)})
        return {name: tensors["sigma"] for name, tensors in found.items()}

    def singular_triplets(
        self, weights: Mapping[str, Tensor], part: Part, rank: int, seed: int = 0
    ) -> dict[str, SingularTriplets]:
        """`rank` triplets of each weight as `partial_svd` orders them, float32 on the CPU.

        What is on disk for a larger rank serves a smaller one. The seed matters to `random` alone.
        """
        entry = f"{part}-seed{seed}" if part == "random" else part
        found = self._get(
            weights, entry, rank, lambda stacked: partial_svd(stacked, part, rank, seed).triplets._asdict()
        )
        # The smallest come last; the largest, and the first drawn, come first.
        kept = slice(-rank, None) if part == "bottom" else slice(rank)
        return {
            name: SingularTriplets(*(tensors[key][..., kept].contiguous() for key in ("u", "sigma", "v")))
            for name, tensors in found.items()
        }

    def _get(
        self, weights: Mapping[str, Tensor], entry: str, rank: int, compute: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        """Each weight's tensors, with at least `rank` values, from disk or by `compute` on a stack of weights."""
        started = time.perf_counter()
        paths = {name: self._path(weight, entry) for name, weight in weights.items()}
        # By file, since two names may have one content, whose lock could not be taken twice.
        found = {path: tensors for path in set(paths.values()) if (tensors := _read(path, rank)) is not None}
        missing = {path: name for name, path in paths.items() if path not in found}
        computed: list[Path] = []
        for name in missing.values():
            _check(name, weights[name], rank)

        with Progress(transient=True, disable=not missing) as progress:
            task = progress.add_task(f"SVD: {entry}", total=len(missing))
            for batch in _batches({path: weights[name] for path, name in missing.items()}):
                with ExitStack() as locks:
                    # In one order everywhere, or two processes could each wait for the other's.
                    for path in sorted(batch):
                        locks.enter_context(FileLock(self.folder / "locks" / f"{path.name}.lock"))
                    # What another process wrote while this one waited.
                    found |= {path: tensors for path in batch if (tensors := _read(path, rank)) is not None}
                    ours = [path for path in batch if path not in found]
                    if ours:
                        results = compute(torch.stack([batch[path] for path in ours]))
                        results = {key: stack.float().cpu() for key, stack in results.items()}
                        for index, path in enumerate(ours):
                            found[path] = {key: stack[index].contiguous() for key, stack in results.items()}
                            _write(path, found[path])
                        computed += ours
                progress.advance(task, len(batch))
        log.info(
            "SVD (%s) of %d matrices: %d computed, %d from the cache, in %.1f s; %.1f MB read, %.1f MB written in %s",
            *(entry, len(found), len(computed), len(found) - len(computed), time.perf_counter() - started),
            *(_megabytes(found.keys() - set(computed)), _megabytes(computed), self.folder),
        )
        return {name: found[path] for name, path in paths.items()}

    def _path(self, weight: Tensor, entry: str) -> Path:
        return self.folder / f"{content_digest(weight)}-{entry}-v{FORMAT}.safetensors"


def _megabytes(paths: Iterable[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / 1e6


def _check(name: str, weight: Tensor, rank: int) -> None:
    try:
        check_weight(weight, rank)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def _batches(weights: dict[Path, Tensor]) -> Iterator[dict[Path, Tensor]]:
    """Weights of one shape, dtype and device at a time, as many as WORKSPACE allows."""
    groups: dict[tuple[torch.Size, torch.dtype, torch.device], list[Path]] = {}
    for path, weight in weights.items():
        groups.setdefault((weight.shape, weight.dtype, weight.device), []).append(path)
    for (shape, _, device), group in groups.items():
        # In float64: the weight, its Gram matrix, a factor or the eigenvectors of that, and scratch.
        each = 8 * (2 * shape.numel() + 4 * min(shape) ** 2)
        count = max(1, WORKSPACE.get(device.type, WORKSPACE["cuda"]) // each)
        for first in range(0, len(group), count):
            yield {path: weights[path] for path in group[first : first + count]}


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


def _read(path: Path, rank: int) -> dict[str, Tensor] | None:
    """What the file holds; None if there is none, if it is damaged, or holds fewer than `rank` values."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("checksum")
        if content_digest(*(tensors[name] for name in sorted(tensors))) != expected:
            raise ValueError("checksum differs")
    except (SafetensorError, ValueError, OSError) as error:
        log.warning("%s is damaged (%s); computing it again", path, error)
        path.unlink(missing_ok=True)
        return None
    return tensors if len(tensors["sigma"]) >= rank else None


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
