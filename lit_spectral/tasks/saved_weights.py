"""Which weights a checkpoint holds: the adapter's alone, whoever puts a model's weights there."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor, nn

from lit_spectral.adapters import packed
from lit_spectral.checkpoint_file import DIGESTED, WEIGHTS

__all__ = ["always_trained", "complete", "keep_trained", "plain", "put_in_place"]

# What torch.compile and strategies put into the path of a module that they wrap.
WRAPPERS = {"_orig_mod", "_forward_module", "_fsdp_wrapped_module"}
# Where no callback puts any.
OTHERS = {*DIGESTED, "lr_schedulers", "loops", "lit_spectral"}


def always_trained(model: Any, missing: Container[str], head: bool) -> set[int]:
    """Ids of the parameters that are trained whatever the method.

    Args:
        model: of transformers, not adapted yet.
        missing: names of those that the backbone's files lack.
        head: whether all that lies outside of the pretrained encoder is among them.
    """
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    return {id(p) for name, p in parameters.items() if name in missing or (head and id(p) not in inside)}


def plain(name: str) -> str:
    """A weight's name in the task, without the wrappers in its path; averages are those of a `module`."""
    return ".".join(part for part in name.removeprefix("module.").split(".") if part not in WRAPPERS)


def keep_trained(checkpoint: dict[str, Any], live: Mapping[str, Tensor], trained: Container[str]) -> None:
    """Take the frozen weights out of a checkpoint: of its `state_dict`, and of those that callbacks have put there.

    Args:
        checkpoint: about to be written.
        live: the task's whole state dict.
        trained: plain names of what is saved.
    """
    for key in checkpoint.keys() & set(WEIGHTS):
        weights = {plain(name): tensor for name, tensor in checkpoint[key].items()}
        checkpoint[key] = packed({name: tensor for name, tensor in weights.items() if name in trained})
    frozen = {plain(name) for name in live if plain(name) not in trained}
    for key in checkpoint.keys() - OTHERS:
        checkpoint[key] = _without(checkpoint[key], frozen)


def put_in_place(checkpoint: dict[str, Any], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the weights in a checkpoint, plain ones, as the task does now; returns its `state_dict` as it was."""
    found = dict(checkpoint["state_dict"])
    for key in checkpoint.keys() & set(WEIGHTS):
        weights = checkpoint[key]
        checkpoint[key] = {name: weights[plain(name)] for name in live if plain(name) in weights}
    return found


def complete(checkpoint: dict[str, Any], live: Mapping[str, Tensor], trained: Container[str]) -> None:
    """Put frozen weights, as the task has them, back where `keep_trained` took them out: callbacks load strictly."""
    strict = set(WEIGHTS) if "averaging_state" in checkpoint else set()
    for key in checkpoint.keys() - (OTHERS - strict):
        checkpoint[key] = _completed(checkpoint[key], live, trained)


def _without(content: Any, frozen: Container[str]) -> Any:
    if isinstance(content, Mapping):
        kept = {key: _without(value, frozen) for key, value in content.items() if not _names(key, frozen)}
        return content if len(kept) == len(content) and all(kept[key] is content[key] for key in kept) else kept
    if type(content) in {list, tuple}:
        return type(content)(_without(value, frozen) for value in content)
    return content


def _completed(content: Any, live: Mapping[str, Tensor], trained: Container[str]) -> Any:
    if isinstance(content, Mapping):
        known = next((key for key in content if _names(key, trained)), None)
        if known is None:
            whole = {key: _completed(value, live, trained) for key, value in content.items()}
            return whole if any(whole[key] is not content[key] for key in whole) else content
        prefix = "module." if known.startswith("module.") else ""
        outer = "" if plain(known) in trained else "model."  # which names in the model's own state dict lack
        weights = {name.removeprefix(outer): tensor for name, tensor in live.items() if name.startswith(outer)}
        return {prefix + name: tensor for name, tensor in weights.items()} | dict(content)
    if type(content) in {list, tuple}:
        return type(content)(_completed(value, live, trained) for value in content)
    return content


def _names(key: Any, weights: Container[str]) -> bool:
    """Whether a key is the name of one of the task's weights, in the task or in its model."""
    return isinstance(key, str) and (plain(key) in weights or f"model.{plain(key)}" in weights)
