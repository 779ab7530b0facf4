"""Text without splits: which part of it is validated on."""

from __future__ import annotations

import math
from typing import Any

from lit_spectral.errors import InputError

__all__ = ["NOTHING_TO_TRAIN_ON", "check_fraction", "split_by_fraction"]

NOTHING_TO_TRAIN_ON = "data.validation_fraction: 1 leaves nothing to train on; use validate, or give less"


def check_fraction(fraction: float) -> None:
    """InputError for one that is not above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise InputError(f"validation_fraction lies above 0 and not above 1; it is {fraction}")


def split_by_fraction(rows: Any, name: str, fraction: float, seed: int) -> Any:
    """The rows of a `datasets.Dataset` that are under a name: `train`, or any other for those validated on.

    Args:
        rows: all of them.
        name: of the set.
        fraction: validated on, the last ones after a seeded shuffle; 1 for all, in their order.
        seed: of the shuffle.

    Raises:
        InputError: none are left to train on.
    """
    if fraction == 1:
        if name == "train":
            raise InputError(NOTHING_TO_TRAIN_ON)
        return rows
    if math.ceil(fraction * len(rows)) == len(rows):
        raise InputError(
            f"data.validation_fraction: {fraction} of {len(rows)} rows leaves none to train on; give less, or more text"
        )
    return rows.train_test_split(fraction, seed=seed)["train" if name == "train" else "test"]
