"""What methods and repairs ask of a backbone's weights and inputs: found for all maps together, when first asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import TypeVar

from torch import Tensor, nn

from lit_spectral.adapters.linear import weight_matrix
from lit_spectral.sharding import shared_out
from lit_spectral.spectra import Part, SingularTriplets
from lit_spectral.spectra.cache import SVDCache
from lit_spectral.spectra.input_directions import Fed, input_gains, leading_input_directions

__all__ = ["Matrices", "Spectra"]

T = TypeVar("T")


class Matrices(Mapping[str, Tensor]):
    """Weights (out, in) by their map's path: those of quantised maps are made when they are looked at, and not kept."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> Tensor:
        return weight_matrix(self._layers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class Spectra:
    """Spectra of linear maps' weights and of their inputs.

    Args:
        weights: W₀ (out, in) of each map.
        fed: gives what reads a text, and what; asked once, if inputs are.
    """

    def __init__(self, weights: Mapping[str, Tensor], fed: Callable[[], Fed]) -> None:
        self.weights = weights
        self._make_fed = fed
        self._cache = SVDCache()
        self._quantiles: dict[float, dict[str, float]] = {}
        self._triplets: dict[tuple[Part, int, int], dict[str, SingularTriplets]] = {}
        self._inputs: dict[float, dict[str, Tensor]] = {}

    def quantile(self, name: str, quantile: float) -> float:
        """Of one weight's singular values, as `SVDCache.drawn`: 0 is the smallest value, 1 the largest."""
        if quantile not in self._quantiles:
            self._drawn(0, 0, quantile)
        return self._quantiles[quantile][name]

    def norm(self, name: str) -> float:
        """‖W₀‖₂ of one weight."""
        return float(self.triplets(name, "top", 1).sigma[0])

    def draw(self, rank: int, seed: int, quantile: float) -> None:
        """Find `random` triplets and a quantile of all weights together, which takes half as long as one by one."""
        if ("random", rank, seed) not in self._triplets:
            self._triplets["random", rank, seed] = self._drawn(rank, seed, quantile)

    def _drawn(self, rank: int, seed: int, quantile: float) -> dict[str, SingularTriplets]:
        def compute(weights: Mapping[str, Tensor]) -> dict[str, tuple[SingularTriplets | None, float]]:
            triplets, values = self._cache.drawn(weights, rank, seed, [quantile])
            return {name: (triplets.get(name), values[name][0]) for name in weights}

        found = shared_out(compute, self.weights)
        self._quantiles[quantile] = {name: value for name, (_, value) in found.items()}
        return {name: triplets for name, (triplets, _) in found.items() if triplets is not None}

    def triplets(self, name: str, part: Part, rank: int, seed: int = 0) -> SingularTriplets:
        """Part of one weight's SVD, as `SVDCache.singular_triplets`."""
        key = (part, rank, seed)
        if key not in self._triplets:
            compute = partial(self._cache.singular_triplets, part=part, rank=rank, seed=seed)
            self._triplets[key] = shared_out(compute, self.weights)
        return self._triplets[key][name]

    def inputs(self, count: float) -> Mapping[str, Tensor]:
        """What the maps that are given something are mostly fed, as `leading_input_directions`."""
        if count not in self._inputs:
            self._inputs[count] = leading_input_directions(self._fed, count)
        return self._inputs[count]

    def input_directions(self, name: str, count: float) -> Tensor:
        """Of one map's inputs, as `leading_input_directions`; ValueError for one that is given nothing."""
        return _of(self.inputs(count), name)

    def input_gain(self, name: str) -> float:
        """Of one map, as `input_gains`; ValueError for one that is given nothing."""
        return _of(self._gains, name)

    @cached_property
    def _fed(self) -> Fed:
        return self._make_fed()

    @cached_property
    def _gains(self) -> dict[str, float]:
        return input_gains(self._fed, self.weights)


def _of(found: Mapping[str, T], name: str) -> T:
    if name not in found:
        raise ValueError(
            "nothing is known of its inputs, since it is given none while the model reads; leave it out of "
            "target_modules, or give input_rank 0 and no bound of_outputs"
        )
    return found[name]
