"""The Update of a live model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_spectral import __version__
from lit_spectral.adapters import HadamardAdapter, HadamardLowRankAdapter, named_changes, named_wrappers, trained_state
from lit_spectral.adapters.base import Change
from lit_spectral.adapters.foreign import PeftChange
from lit_spectral.errors import InputError
from lit_spectral.updates.applied import GivenAdapter
from lit_spectral.updates.beneath import beneath, on_top
from lit_spectral.updates.delta import Delta, Pair
from lit_spectral.updates.update import Update

__all__ = ["about", "delta_of", "of_model"]


@torch.no_grad()
def of_model(model: nn.Module, backbone: str = "", digest: str = "", origin: Mapping[str, Any] | None = None) -> Update:
    """What has been trained in a live model, as float32 on the CPU: a copy, but for factors that are its own.

    With what `put_beneath` has put beneath it: all that makes the model another than its backbone.

    Args:
        model: of transformers, with its head; adapted by this package or by peft's layers, unfolded.
        backbone: whose it is.
        digest: of that.
        origin: what to say of it beside its class and the names of its classes.

    Raises:
        InputError: what was trained are prompts of peft's, bottlenecks, or biases where the model has none.
    """
    if type(model).__module__.startswith("peft."):  # around the model; other methods' layers are in it
        raise InputError("prompts have no ΔW that could be taken away from their model; give an adapter that has one")
    paths = named_changes(model)
    other = next((path for path in named_wrappers(model) if path not in paths), None)
    if other is not None:
        raise InputError(
            f"{other} has a bottleneck adapter, which is not linear: there is no ΔW to analyse, scale, merge or "
            "export; its .ckpt is what validate, predict, evaluate and retain take"
        )
    changes = {path: delta_of(change) for path, change in paths.items()}
    parts = {f"{path}." for path in paths}
    whole = {
        name.replace(".base_layer.", "."): tensor.detach().float().cpu()
        for name, tensor in trained_state(model).items()
        if not any(name.startswith(part) for part in parts) or _is_bias(name, paths)
    }
    whole = _without_peft(whole) | _shifted_biases(paths)
    trained = Update(changes, whole, backbone, digest, about(model) | dict(origin or {}))
    earlier = beneath(model)
    return trained if earlier is None else on_top(trained, earlier)


def _shifted_biases(changed: Mapping[str, Change]) -> dict[str, Tensor]:
    """The biases of maps to whose outputs layers of peft add a constant, by name, with that in them."""
    shifted = {}
    for path, change in changed.items():
        constant = change.constant().cpu() if isinstance(change, PeftChange) else torch.zeros(1)
        if constant.any():
            bias: Tensor | None = change.base_layer.bias  # type: ignore[assignment]
            if bias is None:
                raise InputError(f"peft adds a bias to {path}, which has none; merge it with peft, and give that")
            shifted[f"{path}.bias"] = bias.detach().float().cpu() + constant
    return shifted


def _is_bias(name: str, changed: Mapping[str, Change]) -> bool:
    """Whether it is the bias of a map that is changed, which lies in the map itself."""
    owner, _, _ = name.rpartition(".base_layer.")
    return name.endswith(".base_layer.bias") and owner in changed


def delta_of(change: Change) -> Delta:
    """ΔW of one map as float32 on the CPU."""
    if isinstance(change, GivenAdapter):
        return change.delta.scaled(change.scale).to(device="cpu")
    factors = change.factors()
    if factors is not None:
        return Delta(_pair(*factors[:3]))
    if isinstance(change, HadamardAdapter) and change.reference is None:
        added = None
        if isinstance(change, HadamardLowRankAdapter):
            added = _pair(change.added_left, change.scale, change.added_right)
        return Delta(factors=added, hadamard=_pair(change.left, 1.0, change.right))
    return Delta(matrix=change.delta_weight().float().cpu())


def _pair(left: Tensor, scale: Tensor | float, right: Tensor) -> Pair:
    return Pair((left.detach().float() * scale).cpu(), right.detach().float().cpu())


def _without_peft(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the model has them without peft, which trains a copy of a head under a name of its own."""
    saved = ".modules_to_save.default."
    return {name.replace(saved, "."): tensor for name, tensor in whole.items() if ".original_module." not in name}


def about(model: Any) -> dict[str, Any]:
    """What an origin says of a model: its class, the names of its classes, versions."""
    config = getattr(model, "config", None)
    return {
        "architecture": type(model).__name__,
        "config_labels": dict(getattr(config, "id2label", None) or {}),
        "lit_spectral": __version__,
        "torch": torch.__version__,
    }
