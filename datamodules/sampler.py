"""Batches of rows of similar length, the same for a given seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DistributedSampler

__all__ = ["LengthGroupedSampler"]


class LengthGroupedSampler(DistributedSampler[int]):
    """Indices in an order whose consecutive batches hold rows of similar length.

    Shuffled, rows are permuted, sorted by length within pools of 32 batches, and the batches are
    permuted again; otherwise all rows are sorted, longest first. It is a `DistributedSampler` so
    that Lightning leaves it in place and tells it the epoch. Training repeats a few rows to give
    every process as many; evaluation repeats none, so that metrics count each row once.

    Attributes:
        start: indices of this process at the start of an epoch that are left out, since a resumed run has them behind.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch on one process.
        shuffle: whether rows are permuted by `seed` and epoch.
        num_replicas: processes.
        rank: of this process.
        seed: of the permutation.
    """

    POOL = 32

    def __init__(
        self, lengths: Sequence[int], batch_size: int, shuffle: bool, num_replicas: int, rank: int, seed: int
    ) -> None:
        super().__init__(lengths, num_replicas, rank, shuffle, seed)  # type: ignore[arg-type]
        self.lengths = lengths
        self.batch_size = batch_size
        self.start = 0
        if not shuffle:
            self.num_samples = len(range(rank, len(lengths), num_replicas))

    def __iter__(self) -> Iterator[int]:
        step = self.batch_size * self.num_replicas
        if not self.shuffle:
            return iter(self._by_length(range(len(self.lengths)))[self.rank :: self.num_replicas])
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        order += order[: self.total_size - len(order)]
        batches: list[list[int]] = []
        for start in range(0, len(order), step * self.POOL):
            pool = self._by_length(order[start : start + step * self.POOL])
            batches += [pool[i : i + step] for i in range(0, len(pool), step)]
        full = [batch for batch in batches if len(batch) == step]
        shuffled = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
        # A short batch must come last: the loader cuts this order every batch_size indices.
        shuffled += [batch for batch in batches if len(batch) < step]
        return iter([index for batch in shuffled for index in batch[self.rank :: self.num_replicas]][self.start :])

    def _by_length(self, indices: Sequence[int]) -> list[int]:
        return sorted(indices, key=lambda index: -self.lengths[index])
