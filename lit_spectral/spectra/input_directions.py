"""Directions that a linear map's inputs share, whatever the text is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from rich.progress import Progress
from torch import Tensor, nn

from lit_spectral.errors import InputError
from lit_spectral.reading import read, watched
from lit_spectral.spectra.partial_svd import partial_svd

__all__ = ["leading_input_directions"]

# Random text that is looked at. Other draws, and four times as much, show nearly the same (docs/results).
SEQUENCES = 8
LENGTH = 128


@torch.no_grad()
def leading_input_directions(encoder: nn.Module, targets: Mapping[str, nn.Module], count: int) -> dict[str, Tensor]:
    """Orthonormal bases (in, count), float32, of what a model's linear maps are mostly fed.

    The leading right singular vectors of the inputs X (tokens, in) that each map of `targets` gets while
    the model reads random tokens, the same at every call; of a map that is used several times, of all it
    gets. A transformer's states have a large part that is the same on any text; random tokens show it
    without data. A map that is given nothing is left out.

    Raises:
        InputError: a model that has no token embeddings.
    """
    found: dict[str, list[Tensor]] = defaultdict(list)
    seen: list[Tensor] = []

    def look(name: str, x: Tensor) -> None:
        # Queries, keys and values are given the same tensor, one after the other.
        if not seen or seen[0] is not x:
            top = partial_svd(x.detach().reshape(-1, x.shape[-1]), "top", count).triplets
            seen[:] = [x, (top.v * top.sigma).mT]
        found[name].append(seen[1])
        progress.advance(bar)

    with Progress(transient=True) as progress, watched(targets, look):
        bar = progress.add_task("what inputs have in common", total=len(targets))
        try:
            read(encoder, (SEQUENCES, LENGTH))
        except InputError as error:
            raise InputError(f"{error}; set input_rank: 0") from None
    # Each call's leading directions at their size, (count, in), stand for all that it was given.
    return {name: partial_svd(torch.cat(calls), "top", count).triplets.v.float() for name, calls in found.items()}
