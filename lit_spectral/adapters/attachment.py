"""Putting adapters on a model and taking them off, folding them into its weights, and what to save of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_spectral.adapters.base import Adapter, Change, Wrapper, refuse_quantised
from lit_spectral.adapters.foreign import PeftChange, is_peft_layer
from lit_spectral.adapters.linear import is_linear
from lit_spectral.errors import InputError
from lit_spectral.sharding import is_sharded

__all__ = [
    "adapters",
    "attach",
    "detach",
    "fold",
    "named_changes",
    "named_wrappers",
    "packed",
    "refuse_folded",
    "trained_state",
    "unfold",
]


def attach(model: nn.Module, built: Mapping[str, Wrapper]) -> None:
    """Put each adapter in the place of the linear map at its path, which it wraps."""
    for name, adapter in built.items():
        _replace(model, name, adapter)


def detach(model: nn.Module) -> None:
    """Put the base layers back. Adapters that are folded at this moment leave their change in the weights."""
    for name, wrapper in named_wrappers(model).items():
        base: Any = wrapper.get_base_layer() if is_peft_layer(wrapper) else wrapper.base_layer  # type: ignore[operator]
        _replace(model, name, base)


def fold(model: nn.Module) -> None:
    """Add every ΔW to its weight (float32 arithmetic), so that the model runs at the backbone's speed.

    Raises:
        InputError: weights are quantised, or sharded; `HeldBackbone` holds one in bfloat16, and would undo its rounding
            on another weight; an adapter is not linear; a layer of peft changes something else than a linear map; or a
            weight is tied. Nothing is folded then.
    """
    changes = named_changes(model)
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise InputError("fold: the weights are sharded; load the checkpoint in one process, and fold that model")
    for name, module in model.named_modules():
        if isinstance(module, Wrapper) and name not in changes:
            raise InputError(f"fold: {name} adds what is not linear to its map's output; run unfolded")
        if isinstance(module, Adapter) and getattr(module.weight, "held", False):
            raise InputError(
                f"{name} is held in bfloat16 while it trains; fold the model after training, "
                "or give the callback HeldBackbone enabled=False"
            )
        if is_peft_layer(module) and name not in changes:
            kind = type(module.get_base_layer()).__name__
            raise InputError(f"fold: {name} changes a {kind}, no linear map with floats for weights; run unfolded")
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for name, change in changes.items():
        refuse_quantised(change.base_layer)
        if owners[id(change.base_layer.weight)] > 1:
            raise InputError(
                f"fold: the weight of {name} is tied to another module's, which would change too; run unfolded"
            )
    for change in changes.values():
        change.fold()


def unfold(model: nn.Module) -> None:
    """Undo `fold`; bit by bit, but for peft's layers."""
    for change in named_changes(model).values():
        change.unfold()


def refuse_folded(model: nn.Module, what: str) -> None:
    """InputError if ΔW lies in the weights of any map, so that `what` would take them for the backbone's."""
    if any(change.folded for change in named_changes(model).values()):
        raise InputError(f"{what}: the changes are folded into the weights; unfold the model first (adapters.unfold)")


def adapters(model: nn.Module) -> list[Adapter]:
    """All adapters of a model, in its order."""
    return [module for module in model.modules() if isinstance(module, Adapter)]


def named_changes(model: nn.Module) -> dict[str, Change]:
    """Every change of a linear map by the map's path, in the model's order: our adapters, and peft's."""
    return {
        name: module if isinstance(module, Adapter) else PeftChange(module)
        for name, module in named_wrappers(model).items()
        if isinstance(module, Adapter) or not isinstance(module, Wrapper)
    }


def named_wrappers(model: nn.Module) -> dict[str, nn.Module]:
    """All that stands in the place of a linear map, by its path, also what has no ΔW."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Wrapper) or (is_peft_layer(module) and is_linear(module.get_base_layer()))
    }


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint of an adapted model holds: all that is trainable, and all that adapters own.

    Frozen tensors of an adapter (an SVD's vectors) are in it, since their signs don't reproduce
    across machines; the base layers are not, unless they are trained.
    """
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    owned = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, Wrapper) or is_peft_layer(module)
    )
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name in trainable or (owned and name.startswith(owned) and ".base_layer." not in name)
    }


def packed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors; those of up to a million entries as copies in one memory for each dtype and device.

    A file has one piece for each memory: of many small ones it is larger than peft's and loads half as fast.
    """
    small: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if type(tensor) in {Tensor, nn.Parameter} and tensor.numel() <= 2**20:  # a sharded tensor is of another type
            small.setdefault((tensor.dtype, tensor.device), {})[name] = tensor.detach()
    views: dict[str, Tensor] = {}
    for group in small.values():
        flat = torch.cat([tensor.flatten() for tensor in group.values()])
        pieces = torch.split(flat, [tensor.numel() for tensor in group.values()])
        views |= {name: piece.view(group[name].shape) for name, piece in zip(group, pieces, strict=True)}
    return {name: views.get(name, tensor) for name, tensor in state.items()}


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
