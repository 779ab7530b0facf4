"""Several examples in one row, so that rows are full and nothing is spent on padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from lit_spectral.bars import track

__all__ = ["PackedRows", "collate_packed", "pack"]


def pack(lengths: Sequence[int], capacity: int, seed: int = 0) -> list[list[int]]:
    """Indices of examples that share a row, by best fit of decreasing lengths.

    Args:
        lengths: tokens of each example, none above `capacity`.
        capacity: tokens of a row.
        seed: of the order among examples of one length, and so of which ones share a row.

    Returns:
        Rows, each with the indices of its examples; every index comes once. The same arguments give
        the same rows.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order.sort(key=lambda index: -lengths[index])
    packs: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # rows by the tokens that they still have room for
    rooms: list[int] = []  # the keys of it, sorted
    for index in track(order, "packing", disable=len(order) < 50_000):
        at = bisect_left(rooms, lengths[index])
        if at == len(rooms):
            packs.append([])
            row, room = len(packs) - 1, capacity
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del rooms[at]
        packs[row].append(index)
        left = room - lengths[index]
        if left and not with_room[left]:
            insort(rooms, left)
        with_room[left].append(row)
    return packs


class PackedRows(Dataset[dict[str, Any]]):
    """Packed examples: a row's `input_ids`, `labels`, and `position_ids` that start anew with each example.

    Args:
        rows: examples with `input_ids` and `labels`.
        lengths: tokens of each example.
        capacity: tokens of a row.
        seed: as in `pack`.

    Attributes:
        lengths: tokens of each packed row.
    """

    def __init__(self, rows: Any, lengths: Sequence[int], capacity: int, seed: int) -> None:
        self.rows = rows
        self.packs = pack(lengths, capacity, seed)
        self.lengths = [sum(lengths[index] for index in members) for members in self.packs]

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        packed: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
        members = self.rows[self.packs[index]]
        for ids, labels in zip(members["input_ids"], members["labels"], strict=True):
            packed["input_ids"] += ids
            # Before an example's first token stands the end of another one, which must not predict it.
            packed["labels"] += [-100, *labels[1:]]
            packed["position_ids"] += range(len(ids))
        return packed


def collate_packed(rows: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Packed rows as tensors (rows, length), without `attention_mask`.

    From its absence and the positions, transformers (5) makes a mask that lets a token see its own
    example alone; each token of padding, at position 0, is an example to itself.
    """
    padding = {"input_ids": pad_token_id, "labels": -100, "position_ids": 0}
    return {
        name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value)
        for name, value in padding.items()
    }
