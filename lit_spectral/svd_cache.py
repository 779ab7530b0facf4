"""Spectra of a backbone's weights, computed once and kept on disk.

A file's name is a hash of the weight's content and of what was asked of it, so that a fine-tuned,
re-quantised or transposed weight never meets another's spectrum.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

from lit_spectral import tensor_files
from lit_spectral.errors import InputError
from lit_spectral.files import locked
from lit_spectral.linalg import Part, SingularTriplets
from lit_spectral.partial_svd import check_weight, partial_svd, singular_values
from lit_spectral.paths import cache_folder

__all__ = ["SVDCache"]

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
            others wait, then read what was written. Where a file can't be read or written its
            spectrum is computed and not kept, which one line says.

    Both methods take weights by their module's path and raise InputError, with that path, for one
    that holds NaN or infinity or has no such rank. They compute what is not on disk in batches of
    one shape, with a progress bar, and log one line.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder("spectra")

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
        troubles: dict[Path, Exception] = {}
        found = _read(set(paths.values()), rank, troubles)
        missing = {path: name for name, path in paths.items() if path not in found}
        computed: list[Path] = []
        kept: list[Path] = []
        for name in missing.values():
            _check(name, weights[name], rank)

        with Progress(transient=True, disable=not missing) as progress:
            task = progress.add_task(f"SVD: {entry}", total=len(missing))
            for batch in _batches({path: weights[name] for path, name in missing.items()}):
                with locked(*batch) as unavailable:
                    # What another process wrote while this one waited.
                    found |= _read(batch, rank, troubles)
                    ours = [path for path in batch if path not in found]
                    if ours:
                        results = compute(torch.stack([batch[path] for path in ours]))
                        results = {key: stack.float().cpu() for key, stack in results.items()}
                        for index, path in enumerate(ours):
                            found[path] = {key: stack[index].contiguous() for key, stack in results.items()}
                            trouble = unavailable or _write(path, found[path], troubles.get(path))
                            if trouble is None:
                                kept.append(path)
                            else:
                                troubles[path] = trouble
                        computed += ours
                progress.advance(task, len(batch))
        self._tell(troubles, kept)
        log.info(
            "SVD (%s) of %d matrices: %d computed, %d from the cache, in %.1f s; %.1f MB read, %.1f MB written in %s",
            *(entry, len(found), len(computed), len(found) - len(computed), time.perf_counter() - started),
            *(_megabytes(found, found.keys() - set(computed)), _megabytes(found, kept), self.folder),
        )
        return {name: found[path] for name, path in paths.items()}

    def _path(self, weight: Tensor, entry: str) -> Path:
        return self.folder / f"{tensor_files.content_digest(weight)}-{entry}-v{FORMAT}.safetensors"

    def _tell(self, troubles: dict[Path, Exception], kept: list[Path]) -> None:
        """A line for files that were damaged and are mended, and one for those that the next run will miss too."""
        mended = [error for path, error in troubles.items() if path in kept]
        missed = [error for path, error in troubles.items() if path not in kept]
        if mended:
            log.warning("%d spectra in %s were damaged (%s); computed again", len(mended), self.folder, mended[0])
        if missed:
            log.warning("%d spectra can't be kept in %s (%s); computed anew", len(missed), self.folder, missed[0])


def _megabytes(found: dict[Path, dict[str, Tensor]], paths: Iterable[Path]) -> float:
    return sum(tensor.nbytes for path in paths for tensor in found[path].values()) / 1e6


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


def _read(paths: Iterable[Path], rank: int, troubles: dict[Path, Exception]) -> dict[Path, dict[str, Tensor]]:
    """What files hold that have at least `rank` values; `troubles` gets why one can't be read."""
    found = {}
    for path in paths:
        try:
            tensors = tensor_files.read(path)
        except (tensor_files.DamagedError, OSError) as error:
            troubles[path] = error
            continue
        troubles.pop(path, None)
        if tensors is not None and len(tensors["sigma"]) >= rank:
            found[path] = tensors
    return found


def _write(path: Path, tensors: dict[str, Tensor], trouble: Exception | None) -> Exception | None:
    """Keep an entry, unless there is one that could not be read, which may be whole; returns why it is not kept."""
    if isinstance(trouble, OSError):
        return trouble
    try:
        tensor_files.write(path, tensors)
    except OSError as error:
        return error
    return None
