"""What linear maps are given while a model reads a text: directions that their inputs share, and how they answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_spectral.bars import Progress
from lit_spectral.errors import InputError
from lit_spectral.reading import read, watched
from lit_spectral.spectra.linalg import SingularTriplets
from lit_spectral.spectra.partial_svd import partial_svd

__all__ = ["LENGTH", "SEQUENCES", "Fed", "input_gains", "is_share", "leading_input_directions"]

# Rows of text that are looked at, and tokens of each. Other random ones, and four times as many, show nearly the same
# leading direction (docs/results).
SEQUENCES = 8
LENGTH = 128


class Fed(NamedTuple):
    """A model, linear maps in it by name, and token ids (rows, length) that it is to read; None for random ones."""

    encoder: nn.Module
    targets: Mapping[str, nn.Module]
    tokens: Tensor | None = None


def is_share(count: float) -> bool:
    """Whether a number of directions is said by the share of the inputs' energy that they hold.

    Raises:
        InputError: neither a whole number from 0, nor a share above 0 and below 1.
    """
    # Of 1 the command line may make 1.0, and of 0 0.0, where a setting takes both kinds of numbers.
    if isinstance(count, int | float) and (0 < count < 1 or (count >= 0 and count % 1 == 0)):
        return 0 < count < 1
    raise InputError(
        "input_rank must be at least 0, a whole number of directions, or above 0 and below 1, the share of the inputs' "
        f"energy that they hold, not {count}"
    )


@torch.no_grad()
def leading_input_directions(fed: Fed, count: float) -> dict[str, Tensor]:
    """Orthonormal bases (in, k), float32, of what a model's linear maps are mostly fed.

    The leading right singular vectors of the inputs X (tokens, in) that each map gets while the model reads, the
    largest value's first. A transformer's states have a large part that is the same on any text; random tokens, the
    same at every call, show it without data. Of a map that is used several times the leading vectors of each call, at
    their size, stand for all that it is given. A map that is given nothing is left out.

    Args:
        fed: the model, its maps, and what it reads.
        count: k, at least 1; or below 1 the share of ‖X‖_F² that the directions are to hold, of which there are then
            as few as hold it (of a map that is used several times perhaps a few more).

    Raises:
        InputError: a model that has no token embeddings.
        ValueError: inputs that hold NaN, or have not so many directions.
    """
    found: dict[str, list[tuple[SingularTriplets, float]]] = defaultdict(list)
    seen: list[Tensor] = []
    last: list[tuple[SingularTriplets, float]] = []

    def look(name: str, x: Tensor) -> None:
        # Queries, keys and values are given the same tensor, one after the other.
        if not seen or seen[0] is not x:
            rows = x.detach().reshape(-1, x.shape[-1])
            energy = float(rows.double().square().sum())
            top = _leading(rows, count, energy)
            # Of as many tokens as are read, nothing is kept.
            seen[:], last[:] = [x], [(top._replace(u=top.u[:0], v=top.v.clone()), energy)]
        found[name] += last

    _read(fed, "what inputs have in common", look)
    return {name: _together(calls, count).v.float() for name, calls in found.items()}


@torch.no_grad()
def input_gains(fed: Fed, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """rms‖W₀ x‖ / rms‖x‖ over all inputs x that each map gets while the model reads; W₀ (out, in) by the map's name.

    At most ‖W₀‖₂, where all inputs lie in its first right singular vector; 0 of a map that is given zeros. A map that
    is given nothing is left out. Raises as `leading_input_directions`.
    """
    sums: dict[str, Tensor] = {}

    def look(name: str, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        answers = rows @ weights[name].to(rows).mT
        squares = torch.stack([each.double().square().sum() for each in (answers, rows)])
        sums[name] = sums[name] + squares if name in sums else squares

    _read(fed, "how maps answer to their inputs", look)
    return {name: float((answered / given.clamp_min(1e-300)).sqrt()) for name, (answered, given) in sums.items()}


def _read(fed: Fed, what: str, look: Callable[[str, Tensor], None]) -> None:
    """Have the model read, and `look` see what each map is given, with a progress bar."""

    def look_on(name: str, x: Tensor) -> None:
        look(name, x)
        progress.advance(bar)

    with Progress(transient=True) as progress, watched(fed.targets, look_on):
        bar = progress.add_task(what, total=len(fed.targets))
        try:
            read(fed.encoder, (SEQUENCES, LENGTH) if fed.tokens is None else fed.tokens)
        except InputError as error:
            raise InputError(f"{error}; set input_rank: 0, and give no bound of_outputs") from None


def _leading(rows: Tensor, count: float, energy: float) -> SingularTriplets:
    """Those of rows (tokens, in) that `count` says, of their energy or that of which they are a part."""
    if not is_share(count):
        return partial_svd(rows, "top", int(count)).triplets
    every = partial_svd(rows, "top", min(rows.shape)).triplets
    held = every.sigma.double().square().cumsum(0)
    fewest = min(len(held), 1 + int((held < count * energy).sum()))
    return SingularTriplets(*(part[..., :fewest] for part in every))


def _together(calls: list[tuple[SingularTriplets, float]], count: float) -> SingularTriplets:
    """Of one map's calls, each with its energy."""
    if len(calls) == 1:
        return calls[0][0]
    rows = torch.cat([(part.v * part.sigma).mT for part, _ in calls])
    return _leading(rows, count, sum(energy for _, energy in calls))
