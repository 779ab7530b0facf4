"""Which singular components of W₀ two tasks care about: overlaps of their Fisher information (FCLoRA App. E).

A component of W₀ = Σ σᵢ uᵢ vᵢᵀ is scaled by one number, σᵢ. With G = ∂ℓ/∂W₀ of a row's loss ℓ, its negative
log-likelihood, ∂ℓ/∂σᵢ = uᵢᵀ G vᵢ, so that the diagonal of the Fisher information in the basis of components is

    Fᵢ = E[(uᵢᵀ G vᵢ)²].

Two approximations are made: all off the diagonal is left out, as by Kirkpatrick et al. (2017), and rows are scored by
their own labels or tokens, not by ones that the model would draw (the empirical Fisher information).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_spectral.adapters import named_changes
from lit_spectral.adapters.linear import weight_matrix
from lit_spectral.bars import track
from lit_spectral.reading import evaluating

if TYPE_CHECKING:
    from lit_spectral.analysis.readings import Reading  # which stands on the command line

__all__ = ["Bases", "Overlap", "bases_of", "component_gradients", "diagonal_fisher", "fisher_overlap", "overlaps"]

# From a map's path to all left and right singular vectors of its W₀, (out, m) and (in, m), the largest value's first.
Bases = Mapping[str, tuple[Tensor, Tensor]]


class Overlap(NamedTuple):
    """Of one map and two tasks, a number for each group of components, largest singular values first.

    Where both tasks are one, it is that of two halves of its rows: what the same task comes to with so few.
    """

    one: str
    other: str
    path: str
    groups: list[float]


def fisher_overlap(one: Tensor, other: Tensor) -> float:
    """1 − d² of two diagonals (m,), none below 0: Σ √(F̂ᵢ F̂'ᵢ), each scaled to a sum of 1 (FCLoRA eq. 12).

    d is the Fréchet distance. 1 where one is the other scaled, 0 where no component matters to both; NaN where either
    is 0 altogether.
    """
    first, second = one.double(), other.double()
    total = first.sum() * second.sum()
    return float((first * second).sqrt().sum() / total.sqrt()) if total > 0 else float("nan")


def bases_of(maps: Mapping[str, nn.Module]) -> Bases:
    """By SVDs of the whole weights, a map at a time; float64 of one in float64, float32 of others."""
    found = {}
    for path, module in track(maps.items(), "singular components of W₀"):
        weight = weight_matrix(module)
        u, _, vt = torch.linalg.svd(weight if weight.dtype == torch.float64 else weight.float(), full_matrices=False)
        found[path] = u, vt.mT
    return found


def component_gradients(loss: Callable[[], Tensor], maps: Mapping[str, nn.Module], bases: Bases) -> dict[str, Tensor]:
    """uᵢᵀ G vᵢ of each map's components, (m,), from what it is given and its outputs' gradients; G is never formed.

    Args:
        loss: computes it, 0-d, by calling the maps. No weight need have a gradient, and none gets one.
        maps: linear maps, whose weights may lie transposed, or be codes.
        bases: of each.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []

    def after(path: str, given: Tensor, output: Tensor) -> Tensor:
        # Of a frozen model nothing has a gradient before the first map.
        output = output if output.requires_grad else output.detach().requires_grad_()
        calls.append((path, given.detach(), output))
        return output

    with ExitStack() as stack, torch.enable_grad():
        for path, module in maps.items():
            hook = module.register_forward_hook(lambda _, args, output, path=path: after(path, args[0], output))
            stack.callback(hook.remove)
        value = loss()
        gradients = torch.autograd.grad(value, [output for _, _, output in calls], allow_unused=True)
    found = {path: v.new_zeros(v.shape[1]) for path, (_, v) in bases.items()}
    for (path, given, _), gradient in zip(calls, gradients, strict=True):
        if gradient is not None:
            u, v = bases[path]
            left, right = (x.flatten(0, -2).to(u.dtype) @ basis for x, basis in ((gradient, u), (given, v)))
            found[path] += (left * right).sum(0)
    return found


def diagonal_fisher(reading: Reading, bases: Bases) -> dict[str, Tensor]:
    """Fᵢ of every map by path, (2, m) in float64: of its rows with even and with odd numbers.

    Args:
        reading: of a task whose adapter changes the maps; it is passed over, so that all is of the backbone.
        bases: of these maps.
    """
    maps = {path: change.base_layer for path, change in named_changes(reading.task.model).items() if path in bases}
    sums = {path: torch.zeros(2, v.shape[1], dtype=torch.float64) for path, (_, v) in bases.items()}
    rows = reading.batches(1)
    with evaluating(reading.task), reading.base():
        for number, row in enumerate(track(rows, f"Fisher information on {reading.name}")):
            for path, each in component_gradients(partial(_loss, reading, row), maps, bases).items():
                sums[path][number % 2] += each.double().square().cpu()
    counts = torch.tensor([(len(rows) + 1) // 2, max(1, len(rows) // 2)]).unsqueeze(1)
    return {path: each / counts for path, each in sums.items()}


def _loss(reading: Reading, row: Any) -> Tensor:
    return reading.loss(row)[0]


def overlaps(fishers: Mapping[str, Mapping[str, Tensor]], groups: int) -> Iterator[Overlap]:
    """Of each two tasks, and of each with itself by halves, map by map.

    Args:
        fishers: of `diagonal_fisher` by task.
        groups: of components, as many in each as can be; at most m.
    """
    names = list(fishers)
    for place, name in enumerate(names):
        for path, halves in fishers[name].items():
            yield Overlap(name, name, path, _by_group(halves[0], halves[1], groups))
            for other in names[place + 1 :]:
                pair = halves.mean(0), fishers[other][path].mean(0)
                yield Overlap(name, other, path, _by_group(*pair, groups))


def _by_group(one: Tensor, other: Tensor, groups: int) -> list[float]:
    parts: Sequence[tuple[Tensor, Tensor]] = [*zip(*(each.tensor_split(groups) for each in (one, other)), strict=True)]
    return [fisher_overlap(*part) for part in parts]
