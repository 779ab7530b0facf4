"""Whether a decoder keeps the examples of a packed row apart."""

from __future__ import annotations

from typing import Any

import torch

from lit_spectral.errors import InputError
from lit_spectral.reading import evaluating

__all__ = ["check_packing"]

LENGTH = 6


def check_packing(model: Any) -> None:
    """Read two short examples in one row, and the second of them alone: its logits must be the same.

    Costs two forward passes of a dozen tokens; leaves the model's mode as it was.

    Args:
        model: a decoder with its head, adapted or not, in the precision of its weights.

    Raises:
        InputError: it can't take positions, or a token sees the example before its own.
    """
    embeddings = model.get_input_embeddings()
    ids = torch.linspace(1, embeddings.num_embeddings - 1, 2 * LENGTH, device=embeddings.weight.device).long()[None]
    positions = torch.arange(LENGTH, device=ids.device).repeat(2)[None]
    try:
        with evaluating(model), torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
            packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, -LENGTH:]
            alone = model(input_ids=ids[:, LENGTH:], use_cache=False).logits[0, -LENGTH:]
    except TypeError as error:
        raise InputError(
            f"data.packing: this backbone takes no positions ({error}); give --data.packing false"
        ) from error
    rounding = 1e-4 if packed.dtype == torch.float32 else 0.05
    difference = float((packed - alone).abs().max() / alone.float().std())
    if not difference < rounding:
        raise InputError(
            f"data.packing: this backbone's tokens see other examples of their row (its logits differ by "
            f"{difference:.2g} standard deviations); give --data.packing false"
        )
