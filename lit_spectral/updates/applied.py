"""Updates on a live model: put on, scaled, exchanged for others, and taken off again to the bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral.adapters import Adapter, Factors, attach, detach, named_changes, refuse_folded
from lit_spectral.adapters.linear import is_linear, linear_shape
from lit_spectral.adapters.low_rank import add_low_rank
from lit_spectral.backbone_digest import same_backbone
from lit_spectral.errors import InputError
from lit_spectral.updates.delta import PARTS, Delta
from lit_spectral.updates.update import Update, name_in

__all__ = ["Applied", "GivenAdapter"]


class GivenAdapter(Adapter):
    """A linear map with a change that was found elsewhere and isn't trained: y = (W₀ + scale · ΔW) x + b.

    Thin factors cost what a LoRA costs. What isn't thin is made dense in every forward pass: fold it.

    Args:
        base_layer: the linear map.
        delta: ΔW, which is kept in float32.
        scale: of ΔW; 1 as it was trained, 0 for the backbone.
    """

    left: Tensor | None
    right: Tensor | None
    hadamard_left: Tensor | None
    hadamard_right: Tensor | None
    matrix: Tensor | None

    def __init__(self, base_layer: nn.Module, delta: Delta, scale: float = 1.0) -> None:
        super().__init__(base_layer)
        self.scale = scale
        parts = delta.to(torch.float32, self.device).parts()
        for name in PARTS:
            self.register_buffer(name, parts[name].detach() if name in parts else None)

    @property
    def delta(self) -> Delta:
        """What was given, unscaled."""
        return Delta.of_parts({name: tensor for name in PARTS if (tensor := getattr(self, name)) is not None})

    def factors(self) -> Factors | None:
        """ΔW as factors, or None where it is not of low rank."""
        if self.left is None or self.right is None or self.hadamard_left is not None or self.matrix is not None:
            return None
        return Factors(self.left, self.scale, self.right)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """Scale · ΔW, dense, float32, (out, in)."""
        delta = self.delta
        return delta.dense(None if delta.hadamard is None else self._original).mul_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        out: Tensor = self.base_layer(x)
        if self.folded or self.scale == 0:
            return out
        factors = self.factors()
        if factors is not None:
            return add_low_rank(out, x, factors)
        return out + F.linear(x.to(out.dtype), self.delta_weight().to(out.dtype))


class Applied:
    """A model with one Update on it at a time, or none.

    All of the model is frozen, but for what the Update brings whole: `of_model` gives that Update back.

    Args:
        model: of transformers, with its head, and without adapters of anyone's.
        digest: of its backbone, to tell updates of others by; empty where nobody has looked.

    Attributes:
        update: that is on the model; None where it is as it came.

    Raises:
        InputError: there are adapters on the model.
    """

    def __init__(self, model: Any, digest: str = "") -> None:
        if named_changes(model):
            raise InputError("the model has adapters on it already; give it without them")
        self.model = model
        self.update: Update | None = None
        model.requires_grad_(False)
        self._digest = digest
        self._scale = 1.0
        self._own: dict[str, Tensor] = {}  # values of its own where an update's whole tensors have been

    @property
    def scale(self) -> float:
        """Of every ΔW, any finite number; what was trained whole is not scaled."""
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        if not math.isfinite(scale):
            raise InputError(f"scale is a finite number, not {scale}")
        refuse_folded(self.model, "scale")
        self._scale = float(scale)
        for adapter in named_changes(self.model).values():
            adapter.scale = self._scale  # type: ignore[attr-defined]

    @torch.no_grad()
    def put(self, update: Update | None) -> None:
        """Have the model computed as this update says, and no other; None for the model as it came, to the bit.

        Raises:
            InputError: as `check`, and nothing is changed then; or changes are folded into the weights.
        """
        refuse_folded(self.model, "an update")
        if update is not None:
            self.check(update)
        try:
            self._exchange(update)
        except BaseException:  # memory that ran out, say: not a part of one, and of the other another
            self._exchange(None)
            raise

    def check(self, update: Update) -> None:
        """InputError for an update of another backbone, or with a map or tensor that the model hasn't got."""
        if update.digest and self._digest and not same_backbone(update.digest, self._digest):
            raise InputError("the adapter was trained on a backbone with other weights; give the one it was trained on")
        modules = {path: getattr(each, "base_layer", each) for path, each in self.model.named_modules()}
        for path, delta in update.changes.items():
            module = modules[self._name(path, modules, "linear map")]
            if not is_linear(module):
                raise InputError(
                    f"the adapter changes {path}, which is a {type(module).__name__} here and no linear map; give one "
                    "of this backbone"
                )
            _check_shape(path, delta.shape, linear_shape(module))
        tensors, seen = _tensors(self.model), dict[int, str]()
        for name, value in update.whole.items():
            tensor = tensors[self._name(name, tensors, "tensor")]
            _check_shape(name, tuple(value.shape), tuple(tensor.shape))
            other = seen.setdefault(id(tensor), name)
            if other != name and not torch.equal(update.whole[other], value):
                raise InputError(
                    f"{other} and {name} are one tensor here, and two in the adapter; merge it where it was made"
                )

    def _exchange(self, update: Update | None) -> None:
        detach(self.model)
        tensors = _tensors(self.model)
        for name, own in self._own.items():
            tensors[name].copy_(own)
            tensors[name].requires_grad_(False)
        self.update = None
        if update is None:
            return
        modules = dict(self.model.named_modules())
        changes = {name_in(self.model, path, modules): delta for path, delta in update.changes.items()}
        attach(self.model, {path: GivenAdapter(modules[path], delta, self._scale) for path, delta in changes.items()})
        whole = {name_in(self.model, name, tensors): value for name, value in update.whole.items()}
        for name in whole.keys() - self._own.keys():
            self._own[name] = tensors[name].clone()
        for name, value in whole.items():
            tensors[name].copy_(value)
            tensors[name].requires_grad_(isinstance(tensors[name], nn.Parameter))
        self.update = update

    def _name(self, name: str, known: Mapping[str, Any], what: str) -> str:
        try:
            return name_in(self.model, name, known)
        except KeyError:
            kind = type(self.model).__name__
            raise InputError(
                f"the adapter has {name}, and {kind} no such {what}; give an adapter of this backbone and head"
            ) from None


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name that they have without adapters, those of adapters aside."""
    found = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name.replace(".base_layer.", "."): tensor for name, tensor in found}


def _check_shape(name: str, found: tuple[int, ...], asked: tuple[int, ...]) -> None:
    if found != asked:
        theirs, ours = (" x ".join(map(str, shape)) for shape in (found, asked))
        raise InputError(
            f"{name} is {theirs} in the adapter and {ours} in the model; give one of this backbone and head"
        )
