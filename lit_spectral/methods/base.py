"""What a row of the table of methods says, and how it is put on a model."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from lit_spectral.adapters import Adapter, FactoredAdapter, attach, find_targets
from lit_spectral.adapters.linear import linear_shape, weight_matrix
from lit_spectral.adapters.targets import left_out
from lit_spectral.errors import InputError, check_at_least, check_at_most, check_positive
from lit_spectral.reading import Reading
from lit_spectral.sharding import shared_out
from lit_spectral.spectra import Part, SingularTriplets
from lit_spectral.spectra.cache import SVDCache
from lit_spectral.spectra.input_directions import leading_input_directions

__all__ = [
    "Bound",
    "LowRankMethod",
    "Method",
    "RankMethod",
    "ScaledMethod",
    "Site",
    "Spectra",
    "check_fits",
    "quantile_of",
    "resolve_bound",
]

log = logging.getLogger(__name__)

# Above it, products leave the range of float32.
LARGEST = 1e18

# A bound on singular values: a number, a quartile of W₀'s ("q1" … "q4"), or {"quantile": 0.6} of them.
Bound = float | str | dict[str, float]


class _Matrices(Mapping[str, Tensor]):
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
    """Spectra of all the targets' weights and inputs: computed together, when the first of them is asked for."""

    def __init__(self, encoder: nn.Module, targets: dict[str, nn.Module]) -> None:
        self._encoder, self._targets = encoder, targets
        self.weights = _Matrices(targets)
        self._cache = SVDCache()
        self._quantiles: dict[float, dict[str, float]] = {}
        self._triplets: dict[tuple[Part, int, int], dict[str, SingularTriplets]] = {}
        self._inputs: dict[int, dict[str, Tensor]] = {}

    def quantile(self, name: str, quantile: float) -> float:
        """Of one weight's singular values, as `SVDCache.drawn`."""
        if quantile not in self._quantiles:
            self._drawn(0, 0, quantile)
        return self._quantiles[quantile][name]

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

    def input_directions(self, name: str, count: int) -> Tensor:
        """Of one map's inputs, as `leading_input_directions`."""
        if count not in self._inputs:
            self._inputs[count] = leading_input_directions(self._encoder, self._targets, count)
        return self._inputs[count][name]


class Site(NamedTuple):
    """A linear map to be adapted, by its path in the encoder, and what its start may need."""

    name: str
    layer: nn.Module
    encoder: nn.Module
    spectra: Spectra
    reading: Reading

    @property
    def weight(self) -> Tensor:
        """W₀ (out, in)."""
        return self.spectra.weights[self.name]

    def quantile(self, quantile: float) -> float:
        """Of W₀'s singular values, counted upwards: 0 is the smallest value, 1 the largest."""
        return self.spectra.quantile(self.name, quantile)

    def triplets(self, part: Part, rank: int, seed: int = 0) -> SingularTriplets:
        """Part of the SVD of W₀."""
        return self.spectra.triplets(self.name, part, rank, seed)

    def input_directions(self, count: int) -> Tensor:
        """Orthonormal basis (in, count) of what the unchanged map is mostly fed."""
        return self.spectra.input_directions(self.name, count)


@dataclass
class Method:
    """A way to adapt a model: one row of the table in METHODS.

    Args:
        target_modules: which linear maps; a list of path endings, one regular expression for whole
            paths, or None for the architecture's default (see `lit_spectral.adapters.find_targets`).
        seed: of random choices among singular vectors; the same on every rank.
        head_lr: learning rate of a new head's output layer over that of the rest. Where the head is
            quick to scale logits up, the backbone need not change as much (docs/results).
        start_from: an adapter whose ΔW, head and other tensors training begins at: a `.ckpt` of any method, a folder
            of peft's, or fine-tuned weights; None for the backbone. A resumed run and what loads its checkpoint don't
            read it again.
        on_top_of: earlier adapters, as `start_from` takes them, one or a list: their sum is put into the backbone's
            weights, frozen, and W₀ of this method is what comes of that, as if the backbone were `lit-spectral export
            --to merged` of them. The head begins at that of the last that has one of this model's form. A fit reads
            them, also one that goes on; what loads its checkpoint does not, since their ΔW is in it.
    """

    # Settings that say what ΔW is made of beside what a checkpoint holds: whoever loads it must have the same.
    defines_change: ClassVar[tuple[str, ...]] = ()
    # Settings that act when training starts and never again: a resumed run can't be given others.
    acts_at_start: ClassVar[tuple[str, ...]] = ("seed", "start_from", "on_top_of")
    # Whether there is anything to train; not where a method puts on what was trained before.
    trains: ClassVar[bool] = True

    target_modules: list[str] | str | None = None
    seed: int = 0
    head_lr: float = 1.0
    start_from: str | None = None
    on_top_of: list[str] | str | None = None

    def __post_init__(self) -> None:
        # Who adapts a model otherwise, map by map or as a whole, has one of them.
        if type(self).apply is Method.apply and getattr(type(self).build, "__isabstractmethod__", False):
            raise InputError(f"model.method: {type(self).__name__} is what methods have in common; give one, LoRA say")
        for each in fields(self):
            if getattr(self, each.name) is None and "None" not in str(each.type):
                raise InputError(f"model.method.{each.name} can't be null; leave it out for the default")
        check_positive(head_lr=self.head_lr)
        if not 0 <= self.seed < 2**63:  # what torch's generators take
            raise InputError(f"seed must be at least 0 and below 2^63, not {self.seed}")

    def prepare(self, backbone: str, digest: str, missing: Sequence[str]) -> None:
        """Be told, before `apply`, of the backbone: its name, its digest, and names of weights that its files lack."""

    def apply(self, model: nn.Module, encoder: nn.Module) -> nn.Module:
        """Freeze `model`, put adapters on the targets in `encoder`, its pretrained part, and return the model.

        Raises:
            InputError: no target, or one that can't take this method; the model is as it was then.
        """
        model.requires_grad_(False)
        attach(encoder, {site.name: _named(self.build_adapter, site) for site in self._sites(encoder)})
        return model

    def _sites(self, encoder: nn.Module) -> list[Site]:
        """The maps to adapt; of the default ones, those that the method fits into."""
        reading = Reading(encoder)
        targets = find_targets(encoder, self.target_modules, reading)
        found = {site.name: self._misfit(site) for site in _sites(encoder, targets, reading)}
        misfits = {name: misfit for name, misfit in found.items() if misfit is not None}
        if misfits and (self.target_modules is not None or len(misfits) == len(targets)):
            raise next(iter(misfits.values()))
        fitting = {name: layer for name, layer in targets.items() if name not in misfits}
        if self.target_modules is None and (rest := left_out(encoder, fitting, misfits, reading)):
            log.info("left out by default: %s", rest)
        return _sites(encoder, fitting, reading)

    def _misfit(self, site: Site) -> InputError | None:
        try:
            _named(self.check, site)
        except InputError as error:
            return error
        return None

    def check(self, site: Site) -> None:
        """ValueError if the method can't adapt this map; asked of all maps before anything is computed."""

    def build_adapter(self, site: Site) -> Adapter:
        """The adapter for one linear map, with all that it declares."""
        return self.build(site)

    @abstractmethod
    def build(self, site: Site) -> Adapter:
        """The adapter for one linear map."""

    def plan(self, steps: int) -> None:
        """Prepare for a run of so many optimizer steps; may be asked again, before and after `apply`.

        Raises:
            InputError: a schedule of the method's own that so short a run does not get through.
        """

    def restart(self) -> None:
        """Forget the steps of earlier runs: a new one begins on the same model."""

    @property
    def allocates(self) -> bool:
        """Whether the method takes parts of ΔW away as it trains, which an average over steps would bring back."""
        return False

    def penalty(self) -> Tensor | None:
        """A penalty of the method as a whole, 0-d with its graph, which is kept out of the loss; None for none."""
        return None

    def after_step(self) -> None:
        """Called after every optimizer step that was not skipped, gradients in place."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold of the method besides the model's tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""


def _sites(encoder: nn.Module, targets: dict[str, nn.Module], reading: Reading) -> list[Site]:
    spectra = Spectra(encoder, targets)
    return [Site(name, layer, encoder, spectra, reading) for name, layer in targets.items()]


def _named(step: Any, site: Site) -> Any:
    try:
        return step(site)
    except ValueError as error:
        raise InputError(f"{site.name}: {error}") from None


@dataclass
class RankMethod(Method):
    """What all methods with a rank have.

    Args:
        rank: r, at least 1 and at most the smaller side of every adapted matrix.
        dropout: probability with which inputs of the adapter are dropped while training.
    """

    rank: int = 8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, rank=self.rank)
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout must be in [0, 1), not {self.dropout}")

    def check(self, site: Site) -> None:
        """ValueError if the rank is above what a matrix of this shape can have."""
        check_fits("rank", self.rank, site)


def check_fits(what: str, rank: int, site: Site) -> None:
    """ValueError, naming `what`, if the rank is above what a matrix of this shape can have."""
    out_features, in_features = linear_shape(site.layer)
    if rank > min(out_features, in_features):
        raise ValueError(f"{what} {rank} is above the largest a {out_features} x {in_features} matrix can have")


@dataclass
class LowRankMethod(RankMethod):
    """What the methods have whose ΔW is a product of thin factors.

    Args:
        ball: exact bound on ‖ΔW‖₂, held after every step; None or "none" for none. A number, q1 … q4
            (quartiles of each weight's own singular values, counted upwards) or {quantile: 0.6} of them.
        input_rank: how many of the directions that a map's inputs share on any text ΔW is to ignore, held after
            every step; 0 for none, None for 1 where no state depends on later tokens, as in decoders, and 0 elsewhere.
            Not in the papers: what ΔW answers to such a direction, it answers to every text (docs/results).
        after: earlier adapters, as `start_from` takes them, whose row and column spaces ΔW keeps out of, exactly and
            after every step, as O-LoRA (Wang et al., 2023) does by a penalty; one, or a list. A fit reads them, also
            one that goes on; what loads its checkpoint does not.
    """

    ball: Bound | None = None
    input_rank: int | None = 0
    after: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, input_rank=self.input_rank)

    def check(self, site: Site) -> None:
        """ValueError if rank and input_rank together are above what a matrix of this shape can have."""
        super().check(site)
        if count := self.ignored(site):
            check_fits("rank + input_rank =", self.rank + count, site)

    def ignored(self, site: Site) -> int:
        """How many directions of its inputs a map's ΔW ignores."""
        return int(site.reading.causal) if self.input_rank is None else self.input_rank

    def build_adapter(self, site: Site) -> Adapter:
        """The adapter for one linear map, with its ball and the inputs that it ignores."""
        adapter = self.build(site)
        if count := self.ignored(site):
            adapter.ignore_inputs(site.input_directions(count))
        if str(self.ball).lower() != "none":  # a parser's null may arrive as the word
            assert self.ball is not None
            adapter.hold_in_ball(resolve_bound(self.ball, site))
        return adapter

    @abstractmethod
    def build(self, site: Site) -> FactoredAdapter:
        """The adapter for one linear map."""


@dataclass
class ScaledMethod(LowRankMethod):
    """What methods of the form ΔW = s·(…) have.

    Args:
        alpha: α; None for the rank, so that the scale is 1.
    """

    defines_change = ("alpha",)

    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(alpha=self.alpha)
        check_at_most(LARGEST, alpha=self.alpha)

    @property
    def scale(self) -> float:
        """S = α/r."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def quantile_of(bound: Bound) -> float | None:
    """Which quantile of a matrix's singular values a bound is, counted upwards; None where it is a number.

    q1 is the 25th percentile and q4 the largest value (FCLoRA §3.2 writes σ^(1) … σ^(4)). Raises InputError for a
    bound that is spelled otherwise, and ValueError for a quantile below 0 or above 1.
    """
    if isinstance(bound, str):
        if bound not in {"q1", "q2", "q3", "q4"}:
            raise InputError(f"a bound is a number, q1, q2, q3, q4 or {{quantile: 0.6}}, not {bound!r}")
        bound = {"quantile": int(bound[1]) / 4}
    if not isinstance(bound, dict):
        return None
    if set(bound) != {"quantile"}:
        raise InputError(f"a bound by quantile is written {{quantile: 0.6}}, not {bound}")
    if not 0 <= bound["quantile"] <= 1:
        raise ValueError(f"a quantile lies between 0 and 1, not {bound['quantile']}")
    return bound["quantile"]


def resolve_bound(bound: Bound, site: Site) -> float:
    """A bound as a number, for one matrix: quantiles are those of its own singular values.

    Raises as `quantile_of`, and InputError unless the result is finite and above 0.
    """
    quantile = quantile_of(bound)
    if quantile is not None:
        bound = site.quantile(quantile)
    assert not isinstance(bound, (str, dict))
    if not 0 < bound < LARGEST:
        raise InputError(f"a bound on singular values must be finite and above 0, and below {LARGEST:g}, not {bound}")
    return float(bound)
