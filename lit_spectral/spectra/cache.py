"""Spectra of a backbone's weights, computed once and kept on disk.

A file's name is a hash of the weight's content and of what was asked of it, so that a fine-tuned,
re-quantised or transposed weight never meets another's spectrum.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from lit_spectral import tensor_files
from lit_spectral.bars import Progress
from lit_spectral.errors import InputError
from lit_spectral.files import locked
from lit_spectral.paths import cache_folder
from lit_spectral.spectra.linalg import Part, SingularTriplets
from lit_spectral.spectra.partial_svd import check_weight, drawn_places, inner_svd, partial_svd, singular_values

__all__ = ["SVDCache"]

# Of weights that can be decomposed together.
_Kind = tuple[torch.Size, torch.dtype, torch.device]

log = logging.getLogger(__name__)

# Part of every file's name: raise it when what a file holds changes, so that no release reads another's.
FORMAT = 2
# Bytes that a batch may take while it is decomposed. A CPU gains nothing by what its caches don't hold.
WORKSPACE = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
# Threads that hash weights, each of which may be a copy: one that was made of codes, or lies on a GPU.
MOST_THREADS = 8


class SVDCache:
    """Parts of SVDs by weight content, part and seed, shared by methods, ranks and processes.

    Args:
        folder: where the files lie; default `spectra` in the package's cache folder. Files are
            written under a temporary name and moved, so a reader never sees half of one. One that
            fails its checksum is computed again. Who computes an entry holds its lock, in `locks`;
            others wait, then read what was written. Where a file can't be read or written its
            spectrum is computed and not kept, which one line says.

    All methods take weights by their module's path and raise InputError, with that path, for one
    that holds NaN or infinity or has no such rank. They compute what is not on disk in batches of
    one shape, with a progress bar, and log one line.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder("spectra")

    def singular_triplets(
        self, weights: Mapping[str, Tensor], part: Part, rank: int, seed: int = 0
    ) -> dict[str, SingularTriplets]:
        """`rank` triplets of each weight as `partial_svd` orders them, float32 on the CPU.

        What is on disk for a larger rank serves a smaller one. The seed matters to `random` alone.
        """
        if part == "random":
            return self.drawn(weights, rank, seed, [])[0]
        found = self._get(
            weights, {part: rank}, lambda stack: {part: partial_svd(stack, part, rank).triplets._asdict()}
        )
        return {name: _first(entries[part], rank, part) for name, entries in found.items()}

    def drawn(
        self, weights: Mapping[str, Tensor], rank: int, seed: int, quantiles: Sequence[float]
    ) -> tuple[dict[str, SingularTriplets], dict[str, list[float]]]:
        """The `random` triplets of each weight, and these quantiles in [0, 1] of all its singular values.

        Together they cost little more than one of them; a rank of 0 asks for the quantiles alone. Those count
        upwards, 0 being the smallest value and 1 the largest; between two values they are interpolated.
        """
        draw, levels = f"random-seed{seed}", {f"quantile{quantile!r}": quantile for quantile in quantiles}
        wanted = {draw: rank} if rank else {}

        def compute(stack: Tensor) -> dict[str, dict[str, Tensor]]:
            count = min(stack.shape[-2:])
            places, around = drawn_places(count, rank, seed), [_neighbours(level, count) for level in levels.values()]
            more = sorted({place for pair in around for place in pair} - set(places.tolist()))
            # On the CPU, as the draw: Lightning's default device is the GPU while a model is configured.
            u, sigma, v = inner_svd(stack, torch.cat([places, torch.tensor(more, device="cpu").long()])).triplets
            at = {place: sigma[:, index] for index, place in enumerate([*places.tolist(), *more])}
            results = {draw: {"u": u[..., :rank], "sigma": sigma[..., :rank], "v": v[..., :rank]}} if rank else {}
            for (name, level), (low, high) in zip(levels.items(), around, strict=True):
                results[name] = {"sigma": torch.lerp(at[low], at[high], level * (count - 1) % 1).unsqueeze(-1)}
            return results

        found = self._get(weights, wanted | dict.fromkeys(levels, 1), compute)
        return (
            {name: _first(entries[draw], rank, "random") for name, entries in found.items()} if rank else {},
            {name: [float(entries[level]["sigma"]) for level in levels] for name, entries in found.items()},
        )

    def singular_values(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All singular values of each weight (min(out, in),), falling, float32 on the CPU."""
        found = self._get(weights, {"values": 1}, lambda stack: {"values": {"sigma": singular_values(stack)}})
        return {name: entries["values"]["sigma"] for name, entries in found.items()}

    def _get(
        self,
        weights: Mapping[str, Tensor],
        wanted: Mapping[str, int],
        compute: Callable[[Tensor], dict[str, dict[str, Tensor]]],
    ) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Each weight's entries with the tensors of each, from disk or by `compute` on a stack of weights.

        `wanted` has the number of values that each entry is to have at least.
        """
        started = time.perf_counter()
        # By content, since two names may have one, whose lock could not be taken twice.
        digests, kinds = _digests(weights)
        ranks = {self._path(digest, entry): rank for digest in digests.values() for entry, rank in wanted.items()}
        troubles: dict[Path, Exception] = {}
        found = _read(ranks, troubles)
        missing = {digest: name for name, digest in digests.items() if self._lacks(digest, wanted, found)}
        computed: set[Path] = set()
        kept: list[Path] = []

        what, rank = ", ".join(wanted), max(wanted.values())
        with Progress(transient=True, disable=not missing) as progress:
            task = progress.add_task(f"SVD: {what}", total=len(missing))
            for batch in _batches({digest: kinds[digest] for digest in missing}):
                paths = [self._path(digest, entry) for digest in batch for entry in wanted]
                with locked(*paths) as unavailable:
                    # What another process wrote while this one waited.
                    found |= _read({path: ranks[path] for path in paths if path not in found}, troubles)
                    ours = [digest for digest in batch if self._lacks(digest, wanted, found)]
                    results = compute(_stack(weights, [missing[digest] for digest in ours], rank)) if ours else {}
                    for entry, stacks in results.items():
                        narrow = {key: stack.float().cpu() for key, stack in stacks.items()}
                        for index, digest in enumerate(ours):
                            path = self._path(digest, entry)
                            if path in found:
                                continue
                            found[path] = {key: stack[index].contiguous() for key, stack in narrow.items()}
                            computed.add(path)
                            trouble = unavailable or _write(path, found[path], troubles.get(path))
                            if trouble is None:
                                kept.append(path)
                            else:
                                troubles[path] = trouble
                progress.advance(task, len(batch))
        self._tell(troubles, kept)
        log.info(
            "SVD (%s) of %d matrices: %d computed, %d from the cache, in %.1f s; %.1f MB read, %.1f MB written in %s",
            *(what, len(set(digests.values())), len(missing), len(set(digests.values())) - len(missing)),
            *(time.perf_counter() - started, _megabytes(found, found.keys() - computed), _megabytes(found, kept)),
            self.folder,
        )
        return {name: {entry: found[self._path(digest, entry)] for entry in wanted} for name, digest in digests.items()}

    def _lacks(self, digest: str, wanted: Iterable[str], found: Mapping[Path, object]) -> bool:
        return any(self._path(digest, entry) not in found for entry in wanted)

    def _path(self, digest: str, entry: str) -> Path:
        return self.folder / f"{digest}-{entry}-v{FORMAT}.safetensors"

    def _tell(self, troubles: dict[Path, Exception], kept: list[Path]) -> None:
        """A line for files that were damaged and are mended, and one for those that the next run will miss too."""
        mended = [error for path, error in troubles.items() if path in kept]
        missed = [error for path, error in troubles.items() if path not in kept]
        if mended:
            log.warning("%d spectra in %s were damaged (%s); computed again", len(mended), self.folder, mended[0])
        if missed:
            log.warning("%d spectra can't be kept in %s (%s); computed anew", len(missed), self.folder, missed[0])


def _digests(weights: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, _Kind]]:
    """The content of each weight, as a hash, and the kind of each; in threads, since hashing holds no lock of Python's.

    A weight is looked up when its turn comes: those of quantised maps are made then, and let go.
    """

    def look(name: str) -> tuple[str, _Kind]:
        weight = weights[name]
        return tensor_files.content_digest(weight), (weight.shape, weight.dtype, weight.device)

    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        found = dict(zip(weights, pool.map(look, weights), strict=True))
    return {name: digest for name, (digest, _) in found.items()}, dict(found.values())


def _stack(weights: Mapping[str, Tensor], names: list[str], rank: int) -> Tensor:
    """Weights of one shape (n, o, i); InputError for one that holds NaN or infinity, or has no such rank."""
    stack = []
    for name in names:
        weight = weights[name]
        _check(name, weight, rank)
        stack.append(weight)
    return torch.stack(stack)


def _first(tensors: dict[str, Tensor], rank: int, part: Part) -> SingularTriplets:
    """`rank` triplets of those that a file holds."""
    # The smallest come last; the largest, and the first drawn, come first.
    kept = slice(-rank, None) if part == "bottom" else slice(rank)
    return SingularTriplets(*(tensors[key][..., kept].contiguous() for key in ("u", "sigma", "v")))


def _neighbours(quantile: float, count: int) -> tuple[int, int]:
    """The places of the falling order that a quantile, counted upwards, lies between: the lower value's first."""
    position = quantile * (count - 1)
    return count - 1 - math.floor(position), count - 1 - math.ceil(position)


def _megabytes(found: dict[Path, dict[str, Tensor]], paths: Iterable[Path]) -> float:
    return sum(tensor.nbytes for path in paths for tensor in found[path].values()) / 1e6


def _check(name: str, weight: Tensor, rank: int) -> None:
    try:
        check_weight(weight, rank)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def _batches(kinds: Mapping[str, _Kind]) -> Iterator[list[str]]:
    """Digests of weights of one kind at a time, as many as WORKSPACE allows."""
    groups: dict[_Kind, list[str]] = {}
    for digest, kind in kinds.items():
        groups.setdefault(kind, []).append(digest)
    for (shape, _, device), group in groups.items():
        # In float64: the weight, its Gram matrix, a factor or the eigenvectors of that, and scratch.
        each = 8 * (2 * shape.numel() + 4 * min(shape) ** 2)
        count = max(1, WORKSPACE.get(device.type, WORKSPACE["cuda"]) // each)
        for first in range(0, len(group), count):
            yield group[first : first + count]


def _read(ranks: Mapping[Path, int], troubles: dict[Path, Exception]) -> dict[Path, dict[str, Tensor]]:
    """What files hold that have at least so many values; `troubles` gets why one can't be read."""
    found = {}
    for path, rank in ranks.items():
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
