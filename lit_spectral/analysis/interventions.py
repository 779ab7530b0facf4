"""Which singular components of W₀ a backbone needs: one at a time is removed, turned round or shaken (HiP-LoRA C.1.1).

σᵢ uᵢ vᵢᵀ becomes 0 (zero), −σᵢ uᵢ vᵢᵀ (flip), or (1 + ε ξ) σᵢ uᵢ vᵢᵀ with ξ drawn from N(0, 1) (noise).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from lit_spectral.adapters import named_changes
from lit_spectral.bars import Progress
from lit_spectral.reading import evaluating
from lit_spectral.spectra import SingularTriplets

if TYPE_CHECKING:
    from lit_spectral.analysis.readings import Reading  # which stands on the command line

__all__ = ["WAYS", "Component", "Intervention", "draw", "intervene", "intervened"]

WAYS = ("zero", "flip", "noise")


class Component(NamedTuple):
    """The `number`-th singular component of a map's W₀, from 1, and its σ."""

    path: str
    number: int
    sigma: float


class Intervention(NamedTuple):
    """What it did to the backbone's loss, nats a scored token or row: `change`, above 0 where it hurt."""

    component: Component
    way: str
    change: float


def draw(triplets: Mapping[str, SingularTriplets], count: int, seed: int = 0) -> list[Component]:
    """Some of all maps' components, each once, the i-th of a map with a weight of 1 / i: few are large.

    Args:
        triplets: of each map, its leading ones.
        count: how many; all, where there are no more.
        seed: of the draw.
    """
    every = [Component(path, number, float(sigma))
             for path, each in triplets.items() for number, sigma in enumerate(each.sigma, 1)]  # fmt: skip
    weights = torch.tensor([1 / each.number for each in every], dtype=torch.float64)
    generator = torch.Generator("cpu").manual_seed(seed)
    chosen = torch.multinomial(weights, min(count, len(every)), generator=generator)
    return [every[place] for place in chosen.tolist()]


@contextmanager
def intervened(module: nn.Module, u: Tensor, v: Tensor, added: float) -> Iterator[None]:
    """Within it, a linear map computes (W + added · u vᵀ) x. No weight is written to, and they may be codes.

    Args:
        module: the map.
        u: (out,).
        v: (in,).
        added: minus σ removes a component that u, σ and v are.
    """

    def after(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        along = args[0].to(v.dtype) @ v
        return output + (added * along.unsqueeze(-1) * u).to(output.dtype)

    hook = module.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def intervene(
    reading: Reading,
    components: Sequence[Component],
    triplets: Mapping[str, SingularTriplets],
    noise: float = 0.1,
    batch_size: int = 4,
    seed: int = 0,
) -> list[Intervention]:
    """Change each component of the backbone alone, in each way, and measure its loss.

    Args:
        reading: of a task whose adapter changes the maps; it is passed over. The model is afterwards as it was.
        components: of `draw`.
        triplets: that they were drawn from.
        noise: ε.
        batch_size: rows at a time.
        seed: of ξ.
    """
    maps = {path: change.base_layer for path, change in named_changes(reading.task.model).items()}
    drawn = torch.randn(len(components), generator=torch.Generator("cpu").manual_seed(seed)).tolist()
    batches, found = reading.batches(batch_size), []
    with evaluating(reading.task), reading.base(), Progress(transient=True) as progress:
        passes = len(batches) * (1 + len(WAYS) * len(components))
        bar = progress.add_task(f"interventions on {reading.name}", total=passes)
        before = reading.mean_loss(batches)
        progress.advance(bar, len(batches))
        for component, number in zip(components, drawn, strict=True):
            u, _, v = (each.to(reading.task.device) for each in triplets[component.path])
            place = component.number - 1
            for way, factor in zip(WAYS, (-1.0, -2.0, noise * number), strict=True):
                with intervened(maps[component.path], u[:, place], v[:, place], factor * component.sigma):
                    found.append(Intervention(component, way, reading.mean_loss(batches) - before))
                progress.advance(bar, len(batches))
    return found
