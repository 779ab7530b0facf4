"""Putting adapters on a model, taking them off, and finding the linear maps to put them on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_spectral.adapters.base import Adapter, Change
from lit_spectral.adapters.foreign import PeftChange, is_peft_layer
from lit_spectral.adapters.linear import is_linear
from lit_spectral.errors import InputError

__all__ = [
    "adapters",
    "attach",
    "detach",
    "find_targets",
    "fold",
    "named_changes",
    "packed",
    "refuse_folded",
    "trained_state",
    "unfold",
]

# The papers adapt q, k, v, up and down of the Llama family (HiRA §4, MiLoRA Table 8, FCLoRA Table 14).
DECODER_TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
DECODERS = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3"}


def find_targets(model: nn.Module, target_modules: Sequence[str] | str | None) -> dict[str, nn.Module]:
    """The linear maps to adapt, by their path in the model, in the model's order.

    Args:
        model: a Hugging Face model, or any module.
        target_modules: as in peft, a list of path endings (`query` matches `….self.query`) or one
            regular expression for the whole path. None takes q, k, v, up and down of Llama-like
            decoders, and else every linear map inside the repeated blocks (for BERT-like encoders
            the six of a block), which leaves out embeddings, poolers and heads.

    Raises:
        InputError: nothing matches, a match is not a linear map, or its weight is tied to another's.
    """
    modules = dict(model.named_modules())
    if target_modules is None:
        found = _default_targets(model, modules)
    elif isinstance(target_modules, str):
        found = {name: m for name, m in modules.items() if re.fullmatch(target_modules, name)}
    else:
        endings = tuple(target_modules)
        found = {n: m for n, m in modules.items() if any(n == e or n.endswith("." + e) for e in endings)}
        for ending in endings:
            if not any(n == ending or n.endswith("." + ending) for n in found):
                raise InputError(_nothing_matches(ending, modules))
    if not found:
        raise InputError(_nothing_matches(target_modules, modules))
    adapted = [name for name, module in modules.items() if isinstance(module, Adapter) or is_peft_layer(module)]
    for name in found:
        owner = next((path for path in adapted if name == path or name.startswith(f"{path}.")), None)
        if owner is not None:
            raise InputError(f"{owner} has an adapter already; detach it first")
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, module in found.items():
        if not is_linear(module):
            raise InputError(
                f"target_modules matches {name}, a {type(module).__name__}, which is not a linear map; "
                f"linear maps here end in {_linear_endings(modules)}"
            )
        if owners[id(module.weight)] > 1:
            raise InputError(f"the weight of {name} is tied to another module's; leave it out of target_modules")
    return found


def attach(model: nn.Module, built: dict[str, Adapter]) -> None:
    """Put each adapter in the place of the linear map at its path, which it wraps."""
    for name, adapter in built.items():
        _replace(model, name, adapter)


def detach(model: nn.Module) -> None:
    """Put the base layers back. Adapters that are folded at this moment leave their change in the weights."""
    for name, change in named_changes(model).items():
        _replace(model, name, change.base_layer)


def fold(model: nn.Module) -> None:
    """Add every ΔW to its weight (float32 arithmetic), so that the model runs at the backbone's speed.

    Raises:
        InputError: `HeldBackbone` holds a weight in bfloat16, and would undo its rounding on another weight.
    """
    for name, adapter in model.named_modules():
        if isinstance(adapter, Adapter) and getattr(adapter.weight, "held", False):
            raise InputError(
                f"{name} is held in bfloat16 while it trains; fold the model after training, "
                "or give the callback HeldBackbone enabled=False"
            )
    for change in named_changes(model).values():
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
    found: dict[str, Change] = {}
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            found[name] = module
        elif is_peft_layer(module) and is_linear(module.get_base_layer()):
            found[name] = PeftChange(module)
    return found


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint of an adapted model holds: all that is trainable, and all that adapters own.

    Frozen tensors of an adapter (an SVD's vectors) are in it, since their signs don't reproduce
    across machines; the base layers are not, unless they are trained.
    """
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    owned = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, Adapter) or is_peft_layer(module)
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


def _default_targets(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) in DECODERS:
        return find_targets(model, DECODER_TARGETS)
    blocks = [f"{name}." for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    return {n: m for n, m in modules.items() if is_linear(m) and n.startswith(tuple(blocks) or "\0")}


def _linear_endings(modules: dict[str, nn.Module]) -> str:
    endings = Counter(name.rsplit(".", 1)[-1] for name, module in modules.items() if is_linear(module))
    return ", ".join(f"{ending} ({count})" for ending, count in endings.items()) or "(none)"


def _nothing_matches(target: Sequence[str] | str | None, modules: dict[str, nn.Module]) -> str:
    wanted = "the default" if target is None else repr(target)
    return f"target_modules: {wanted} matches nothing in this model; its linear maps end in {_linear_endings(modules)}"
