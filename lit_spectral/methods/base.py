"""What a row of the table of methods says, and how it is put on a model."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from torch import nn

from lit_spectral import linalg
from lit_spectral.adapters import Adapter, attach, find_targets
from lit_spectral.adapters.linear import linear_shape, weight_matrix
from lit_spectral.errors import InputError
from lit_spectral.svd_cache import SVDCache

__all__ = ["Bound", "LowRankMethod", "Method", "ScaledMethod", "resolve_bound"]

# A bound on singular values: a number, a quartile of W₀'s ("q1" … "q4"), or {"quantile": 0.6} of them.
Bound = float | str | dict[str, float]


@dataclass
class Method:
    """A way to adapt a model: one row of the table in METHODS.

    Args:
        target_modules: which linear maps; a list of path endings, one regular expression for whole
            paths, or None for the architecture's default (see `lit_spectral.adapters.find_targets`).
        seed: of random choices among singular vectors; the same on every rank.
    """

    target_modules: list[str] | str | None = None
    seed: int = 0

    def apply(self, model: nn.Module, encoder: nn.Module) -> None:
        """Freeze `model`, then put adapters on the targets in `encoder`, its pretrained part."""
        model.requires_grad_(False)
        targets = find_targets(encoder, self.target_modules)
        cache = SVDCache()
        attach(encoder, {name: self._build(name, layer, cache) for name, layer in targets.items()})

    def _build(self, name: str, layer: nn.Module, cache: SVDCache) -> Adapter:
        try:
            return self.build(layer, cache)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from None

    @abstractmethod
    def build(self, layer: nn.Module, cache: SVDCache) -> Adapter:
        """The adapter for one linear map."""


@dataclass
class LowRankMethod(Method):
    """What all methods with a rank have.

    Args:
        rank: r, at least 1 and at most the smaller side of every adapted matrix.
        dropout: probability with which inputs of the adapter are dropped while training.
    """

    rank: int = 8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"rank must be at least 1, not {self.rank}")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout must be in [0, 1), not {self.dropout}")

    def check_rank(self, layer: nn.Module) -> None:
        """InputError if the rank is above what a matrix of this shape can have."""
        shape = linear_shape(layer)
        if self.rank > min(shape):
            raise InputError(f"rank {self.rank} is above the largest a {shape[0]} x {shape[1]} matrix can have")


@dataclass
class ScaledMethod(LowRankMethod):
    """What methods of the form ΔW = s·(…) have.

    Args:
        alpha: α; None for the rank, so that the scale is 1.
    """

    alpha: float | None = None

    @property
    def scale(self) -> float:
        """S = α/r."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def resolve_bound(bound: Bound, layer: nn.Module, cache: SVDCache) -> float:
    """A bound as a number, for one matrix: quantiles are those of its own singular values.

    Quantiles count upwards, so that q1 is the 25th percentile and q4 the largest value
    (FCLoRA §3.2 writes σ^(1) … σ^(4)). Raises InputError unless the result is finite and above 0.
    """
    if isinstance(bound, str):
        if bound not in {"q1", "q2", "q3", "q4"}:
            raise InputError(f"a bound is a number, q1, q2, q3, q4 or {{quantile: 0.6}}, not {bound!r}")
        bound = {"quantile": int(bound[1]) / 4}
    if isinstance(bound, dict):
        if set(bound) != {"quantile"}:
            raise InputError(f"a bound by quantile is written {{quantile: 0.6}}, not {bound}")
        values = cache.singular_values({"": weight_matrix(layer)})[""]
        bound = linalg.singular_value_quantile(values, bound["quantile"])
    if not math.isfinite(bound) or bound <= 0:
        raise InputError(f"a bound on singular values must be finite and above 0, not {bound}")
    return float(bound)
