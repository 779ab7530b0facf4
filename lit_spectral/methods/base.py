"""What a row of the table of methods says, and how it is put on a model."""

from __future__ import annotations

import logging
import statistics
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lit_spectral.adapters import Adapter, FactoredAdapter, attach, find_targets
from lit_spectral.adapters.linear import linear_shape
from lit_spectral.adapters.targets import left_out
from lit_spectral.backbones import AS_IT_COMES, Loading
from lit_spectral.errors import InputError, check_at_least, check_at_most, check_positive
from lit_spectral.input_text import RANDOM, input_tokens
from lit_spectral.methods.bounds import LARGEST, Bound, check_bound, resolve_bound
from lit_spectral.methods.spectra import Matrices, Spectra
from lit_spectral.reading import Reading
from lit_spectral.spectra import Part, SingularTriplets
from lit_spectral.spectra.input_directions import Fed, is_share

__all__ = ["LowRankMethod", "Method", "RankMethod", "ScaledMethod", "Site", "check_fits"]

log = logging.getLogger(__name__)


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

    def bound(self, bound: Bound) -> float:
        """A bound on singular values as a number, as `resolve_bound`."""
        return resolve_bound(bound, self.spectra, self.name)

    def triplets(self, part: Part, rank: int, seed: int = 0) -> SingularTriplets:
        """Part of the SVD of W₀."""
        return self.spectra.triplets(self.name, part, rank, seed)

    def input_directions(self, count: float) -> Tensor:
        """Orthonormal basis (in, k) of what the unchanged map is mostly fed, as `leading_input_directions`."""
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

    def prepare(self, backbone: str, digest: str, missing: Sequence[str], loading: Loading = AS_IT_COMES) -> None:
        """Be told, before `apply`, of the backbone: its name, its digest, what its files lack, how they are read."""

    def apply(self, model: nn.Module, encoder: nn.Module) -> nn.Module:
        """Freeze `model`, put adapters on the targets in `encoder`, its pretrained part, and return the model.

        Raises:
            InputError: no target, or one that can't take this method; the model is as it was then.
        """
        model.requires_grad_(False)
        attach(encoder, {site.name: _named(self.build_adapter, site) for site in self._sites(model, encoder)})
        return model

    def input_tokens(self, model: nn.Module, encoder: nn.Module) -> Tensor | None:
        """Token ids (rows, length) on which maps' inputs are looked at; None for random ones."""
        return None

    def _sites(self, model: nn.Module, encoder: nn.Module) -> list[Site]:
        """The maps to adapt; of the default ones, those that the method fits into."""
        reading = Reading(encoder)
        targets = find_targets(encoder, self.target_modules, reading)

        def sites(layers: dict[str, nn.Module]) -> list[Site]:
            spectra = Spectra(Matrices(layers), lambda: Fed(encoder, layers, self.input_tokens(model, encoder)))
            return [Site(name, layer, encoder, spectra, reading) for name, layer in layers.items()]

        found = {site.name: self._misfit(site) for site in sites(targets)}
        misfits = {name: misfit for name, misfit in found.items() if misfit is not None}
        if misfits and (self.target_modules is not None or len(misfits) == len(targets)):
            raise next(iter(misfits.values()))
        fitting = {name: layer for name, layer in targets.items() if name not in misfits}
        if self.target_modules is None and (rest := left_out(encoder, fitting, misfits, reading)):
            log.info("left out by default: %s", rest)
        return sites(fitting)

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


def _named(step: Any, site: Site) -> Any:
    try:
        return step(site)
    except InputError:  # of a setting, whichever map it is
        raise
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
            (quartiles of each weight's own singular values, counted upwards), {quantile: 0.6} of them,
            {of_norm: 0.05} (that part of ‖W₀‖₂), or {of_outputs: 0.1}: such that over the inputs of `input_text`
            rms‖ΔW x‖ is at most that part of rms‖W₀ x‖ (`lit_spectral.methods.bounds.resolve_bound`).
        frobenius: exact bound on ‖ΔW‖_F, of every map, held after every step by scaling ΔW; None for none.
        input_rank: which of the directions that a map's inputs share ΔW is to ignore, held after every step: how
            many, or, above 0 and below 1, as many as hold that share of the inputs' energy, or as there is room for
            beside the rank; 0 for none, None for 1 of each map that is given something while the model reads and
            has room for it. Not in the papers: what ΔW answers to such a direction, it answers to every text
            (docs/results).
        input_text: what the model reads when inputs are looked at, 1024 tokens at most: `random` ones; `self`, what a
            decoder's backbone says by itself, drawn by `seed`; or a corpus: a file, a folder, python-docs,
            wikitext-2, …. What loads a checkpoint does not read it again.
        after: earlier adapters, as `start_from` takes them, whose row and column spaces ΔW keeps out of, exactly and
            after every step, as O-LoRA (Wang et al., 2023) does by a penalty; one, or a list. A fit reads them, also
            one that goes on; what loads its checkpoint does not.
    """

    ball: Bound | None = None
    frobenius: float | None = None
    input_rank: int | float | None = 0
    input_text: str = RANDOM
    after: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (ball := self._ball) is not None:
            check_bound("ball", ball)
        check_positive(frobenius=self.frobenius)
        check_at_most(LARGEST, frobenius=self.frobenius)
        if self.input_rank is not None and not is_share(self.input_rank):
            self.input_rank = int(self.input_rank)
        if not self.input_text:
            raise InputError("input_text: none is given; give random, self, or a corpus")
        self._backbone, self._digest, self._loading = "", "", AS_IT_COMES
        self._tokens: Tensor | None = None  # of input_text, once it is read
        self._saved: dict[str, Any] = {}  # of a checkpoint
        self._ignored: list[int] = []  # directions of each map

    def prepare(self, backbone: str, digest: str, missing: Sequence[str], loading: Loading = AS_IT_COMES) -> None:
        """Note whose text `input_text` may name."""
        self._backbone, self._digest, self._loading = backbone, digest, loading

    def apply(self, model: nn.Module, encoder: nn.Module) -> nn.Module:
        """As any method, and say how many directions of inputs hold the share that is to be ignored."""
        self._ignored = []
        adapted = super().apply(model, encoder)
        if isinstance(self.input_rank, float):
            log.info(
                "input_rank: ΔW ignores %d to %d directions of a map's inputs (%s), median %g, which hold %g of their "
                "energy, or are as many as there is room for beside the rank",
                *(min(self._ignored), max(self._ignored), self.input_text, statistics.median(self._ignored)),
                self.input_rank,
            )
        return adapted

    def input_tokens(self, model: nn.Module, encoder: nn.Module) -> Tensor | None:
        """Those of `input_text`, or of the checkpoint that is loaded, if it is of the same text."""
        if self._saved.get("input_text") == self.input_text:
            self._tokens = _checked(self._saved.get("input_tokens"), encoder)
        else:
            known = (self._backbone, self._digest, self.seed, self._loading)
            self._tokens = input_tokens(self.input_text, encoder, model, *known)
        return self._tokens

    def state_dict(self) -> dict[str, Any]:
        """The tokens that were read, where they aren't random ones, which are the same everywhere."""
        return {} if self._tokens is None else {"input_text": self.input_text, "input_tokens": self._tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read, before `apply`, the same tokens again; afterwards what was read stays."""
        self._saved, theirs = state, state.get("input_tokens")
        if self._tokens is not None and theirs is not None and not torch.equal(theirs.cpu(), self._tokens.cpu()):
            log.warning("input_text: another text was read than when the run began, and acts from here on")

    def check(self, site: Site) -> None:
        """ValueError if rank and input_rank together are above what a matrix of this shape can have."""
        super().check(site)
        if count := self.counted(site):
            check_fits("rank + input_rank =", self.rank + count, site)

    def counted(self, site: Site) -> int:
        """How many directions of its inputs a map's ΔW is told to ignore by number; 0 where none is given."""
        return self.input_rank if isinstance(self.input_rank, int) else 0

    def ignored(self, site: Site) -> int:
        """How many directions of its inputs a map's ΔW ignores."""
        if self.input_rank is None:
            # Nobody asked for it: what can't be read, or has no room, goes without.
            room = site.reading.calls is not None and self.room(site) > 0
            return int(room and site.name in site.spectra.inputs(1))
        if isinstance(self.input_rank, float):
            return min(site.input_directions(self.input_rank).shape[1], self.room(site))
        return self.counted(site)

    @property
    def _ball(self) -> Bound | None:
        """`ball`, or None; a parser's null may arrive as the word."""
        return None if str(self.ball).lower() == "none" else self.ball

    def room(self, site: Site) -> int:
        """How many directions of its inputs a map's ΔW can ignore beside what else the method needs."""
        return min(linear_shape(site.layer)) - self.rank

    def build_adapter(self, site: Site) -> Adapter:
        """The adapter for one linear map, with its ball and the inputs that it ignores."""
        adapter = self.build(site)
        count = self.ignored(site)
        self._ignored.append(count)
        if count:
            by = self.input_rank if isinstance(self.input_rank, float) else count
            adapter.ignore_inputs(site.input_directions(by)[:, :count])
        if (ball := self._ball) is not None:
            adapter.hold_in_ball(site.bound(ball))
        adapter.frobenius_radius = self.frobenius
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


def _checked(tokens: Any, encoder: Any) -> Tensor:
    """Token ids of a checkpoint; InputError for what can't be this model's."""
    known = encoder.get_input_embeddings().weight.shape[0]
    whole = isinstance(tokens, Tensor) and tokens.ndim == 2 and tokens.dtype == torch.int64 and tokens.numel() > 0
    if not whole or not 0 <= int(tokens.min()) <= int(tokens.max()) < known:
        raise InputError("input_text: what the checkpoint says was read is no text of this backbone; it is damaged")
    return tokens  # type: ignore[no-any-return]
