"""Updates on a live model: put on, scaled, exchanged for others, and taken off again to the bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectral.adapters import Adapter, Factors, attach, named_changes, refuse_folded
from lit_spectral.adapters.linear import is_linear, linear_shape, weight_matrix
from lit_spectral.adapters.low_rank import add_low_rank
from lit_spectral.backbone_digest import same_backbone
from lit_spectral.errors import InputError
from lit_spectral.updates.delta import Delta, Pair
from lit_spectral.updates.update import Update

__all__ = ["Applied", "GivenAdapter"]

# Of a Delta, in its order: buffers of the adapter.
PARTS = ("left", "right", "hadamard_left", "hadamard_right", "matrix")


class GivenAdapter(Adapter):
    """A linear map with a change that was found elsewhere and isn't trained: y = (W₀ + scale · ΔW) x + b.

    Attributes:
        scale: of ΔW; 1 as it was trained, 0 for the backbone.
    """

    left: Tensor | None
    right: Tensor | None
    hadamard_left: Tensor | None
    hadamard_right: Tensor | None
    matrix: Tensor | None

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.scale = 1.0
        self.put(None)

    def put(self, delta: Delta | None) -> None:
        """Change the map by this and nothing else from now on; None for nothing."""
        parts: list[Tensor | None] = [None] * len(PARTS)
        if delta is not None:
            factors, hadamard = delta.factors or (None, None), delta.hadamard or (None, None)
            parts = [*factors, *hadamard, delta.matrix]
        for name, tensor in zip(PARTS, parts, strict=True):
            moved = None if tensor is None else tensor.to(self.device, torch.float32)
            self.register_buffer(name, moved)

    @property
    def delta(self) -> Delta | None:
        """What was put on, unscaled; None for nothing."""
        pairs = [(self.left, self.right), (self.hadamard_left, self.hadamard_right)]
        factors, hadamard = (Pair(a, b) if a is not None and b is not None else None for a, b in pairs)
        if factors is None and hadamard is None and self.matrix is None:
            return None
        return Delta(factors, hadamard, self.matrix)

    def factors(self) -> Factors | None:
        """ΔW as factors, or None where it is not of low rank."""
        if self.left is None or self.right is None or self.hadamard_left is not None or self.matrix is not None:
            return None
        return Factors(self.left, self.scale, self.right)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """Scale · ΔW, dense, float32, (out, in)."""
        delta = self.delta
        if delta is None:
            return torch.zeros(self.out_features, self.in_features, device=self.device)
        weight = None if delta.hadamard is None else weight_matrix(self.base_layer).float()
        return delta.dense(weight).mul_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        out: Tensor = self.base_layer(x)
        if self.folded or self.scale == 0 or self.delta is None:
            return out
        factors = self.factors()
        if factors is not None:
            return add_low_rank(out, x, factors)
        return out + F.linear(x.to(out.dtype), self.delta_weight().to(out.dtype))


class Applied:
    """A model with one Update on it at a time, or none.

    Args:
        model: of transformers, with its head, and without adapters of anyone's.
        digest: of its backbone, to tell updates of others by; empty where nobody has looked.

    Raises:
        InputError: there are adapters on the model.
    """

    def __init__(self, model: Any, digest: str = "") -> None:
        if named_changes(model):
            raise InputError("the model has adapters on it already; give it without them")
        self.model = model
        self._digest = digest
        self._scale = 1.0
        self._adapters: dict[str, GivenAdapter] = {}
        self._own: dict[str, Tensor] = {}  # values of its own where an update's whole tensors have been

    @property
    def scale(self) -> float:
        """Of every ΔW; what was trained whole is not scaled."""
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        refuse_folded(self.model, "scale")
        self._scale = scale
        for adapter in self._adapters.values():
            adapter.scale = scale

    @torch.no_grad()
    def put(self, update: Update | None) -> None:
        """Have the model computed as this update says, and no other; None for the model as it came, to the bit.

        Raises:
            InputError: it is of another backbone, or the model has no such map or tensor; nothing is changed then.
        """
        refuse_folded(self.model, "an update")
        changes, whole = ({}, {}) if update is None else (update.changes, update.whole)
        modules = dict(self.model.named_modules())
        tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in self.model.state_dict().items()}
        if update is not None:
            self._check(update, modules, tensors)
        new = {path: GivenAdapter(modules[path]) for path in changes if path not in self._adapters}
        attach(self.model, new)  # type: ignore[arg-type]
        self._adapters |= new
        for path, adapter in self._adapters.items():
            adapter.put(changes.get(path))
            adapter.scale = self._scale
        for name in whole.keys() - self._own.keys():
            self._own[name] = tensors[name].clone()
        for name, own in self._own.items():
            tensors[name].copy_(whole.get(name, own))

    def _check(self, update: Update, modules: dict[str, nn.Module], tensors: dict[str, Tensor]) -> None:
        if update.digest and self._digest and not same_backbone(update.digest, self._digest):
            raise InputError("the adapter was trained on a backbone with other weights; give the one it was trained on")
        kind = type(self.model).__name__
        for path, delta in update.changes.items():
            module: Any = modules.get(path)
            module = getattr(module, "base_layer", module) if path in self._adapters else module
            if module is None or not is_linear(module):
                raise InputError(f"the adapter changes {path}, and {kind} has no such linear map; give its backbone")
            _check_shape(path, delta.shape, linear_shape(module))
        for name, tensor in update.whole.items():
            if name not in tensors:
                raise InputError(f"the adapter brings {name}, and {kind} has no such tensor; give its backbone")
            _check_shape(name, tuple(tensor.shape), tuple(tensors[name].shape))


def _check_shape(name: str, found: tuple[int, ...], asked: tuple[int, ...]) -> None:
    if found != asked:
        theirs, ours = (" x ".join(map(str, shape)) for shape in (found, asked))
        raise InputError(f"{name} is {theirs} in the adapter and {ours} in the model; give its backbone")
