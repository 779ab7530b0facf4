"""Directions that a linear map's inputs share, whatever the text is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from rich.progress import Progress
from torch import Tensor, nn

from lit_spectral.errors import InputError
from lit_spectral.partial_svd import partial_svd

__all__ = ["is_causal", "leading_input_directions"]

# Random text that is looked at. Other draws, and four times as much, show nearly the same (docs/results).
SEQUENCES = 8
LENGTH = 128


def is_causal(encoder: nn.Module) -> bool:
    """Whether a transformers model's attention sees earlier tokens only, as it says itself."""
    return any(getattr(module, "is_causal", False) for module in encoder.modules())


@torch.no_grad()
def leading_input_directions(encoder: nn.Module, targets: Mapping[str, nn.Module], count: int) -> dict[str, Tensor]:
    """Orthonormal bases (in, count), float32, of what a model's linear maps are mostly fed.

    The leading right singular vectors of the inputs X (tokens, in) that each map of `targets` gets while
    the model reads random tokens, the same at every call. A transformer's states have a large part that
    is the same on any text; random tokens show it without data.

    Raises:
        InputError: a model that has no token embeddings; a map that is given no input.
    """
    embeddings = getattr(encoder, "get_input_embeddings", lambda: None)()
    if embeddings is None:
        raise InputError(
            f"{type(encoder).__name__} has no token embeddings to find what its maps are fed; set input_rank: 0"
        )
    longest = getattr(encoder.config, "max_position_embeddings", LENGTH)
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (SEQUENCES, min(LENGTH, longest // 2))  # half: some architectures' positions don't start at 0
    tokens = torch.randint(embeddings.weight.shape[0], shape, generator=generator, device="cpu")
    found: dict[str, Tensor] = {}
    seen: list[Tensor] = []

    def look(name: str, x: Tensor) -> None:
        # Queries, keys and values are given the same tensor, one after the other.
        if not seen or seen[0] is not x:
            rows = x.detach().reshape(-1, x.shape[-1])
            seen[:] = [x, partial_svd(rows, "top", count).triplets.v.float()]
        found[name] = seen[1]
        progress.advance(bar)

    with ExitStack() as stack:
        progress = stack.enter_context(Progress(transient=True))
        bar = progress.add_task("what inputs have in common", total=len(targets))
        stack.callback(encoder.train, encoder.training)
        encoder.eval()
        for name, layer in targets.items():
            hook = layer.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0]))
            stack.callback(hook.remove)
        encoder(input_ids=tokens.to(embeddings.weight.device))
    if idle := sorted(targets.keys() - found.keys()):
        raise InputError(f"{idle[0]} is given no input when the model reads a text; leave it out of target_modules")
    return found
