"""What training leaves of a backbone, with no model in memory: the currency of all that follows training."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from os.path import abspath
from typing import Any

from torch import Tensor

from lit_spectral.backbone_digest import same_backbone
from lit_spectral.errors import InputError
from lit_spectral.spectra.linalg import all_finite
from lit_spectral.updates.delta import Delta

__all__ = ["Update", "check_same_backbone", "name_in", "sources_within"]


@dataclass(frozen=True)
class Update:
    """Changes of linear maps, tensors that were trained whole, whose backbone it is, and where it came from.

    Args:
        changes: ΔW by the map's path in the Hugging Face model with its head (`model.layers.0.self_attn.q_proj`).
        whole: new values by parameter name in that model: heads, biases, norms, embeddings.
        backbone: a hub id or folder.
        digest: of the backbone's weights as `lit_spectral.backbone_digest`; empty where nobody has looked.
        origin: method, settings, steps, versions, the command: for people to read.
    """

    changes: Mapping[str, Delta]
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    backbone: str = ""
    digest: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[str, Delta], Delta], **noted: Any) -> Update:
        """The same with every ΔW replaced by `change(path, ΔW)`, and with more to say of its origin."""
        changes = {path: change(path, delta) for path, delta in self.changes.items()}
        return replace(self, changes=changes, origin={**self.origin, **noted})

    def scaled(self, factor: float) -> Update:
        """Every ΔW times a factor; what was trained whole stays."""
        return self.map(lambda _, delta: delta.scaled(factor))

    @property
    def needs_weights(self) -> bool:
        """Whether some ΔW multiplies its W₀."""
        return any(delta.hadamard is not None for delta in self.changes.values())

    @property
    def labels(self) -> dict[int, str]:
        """Names of its head's classes by number; empty where its origin doesn't say."""
        given = self.origin.get("config_labels") or {}
        pairs = enumerate(given) if isinstance(given, list) else given.items()
        return {int(number): str(label) for number, label in pairs}

    def class_count(self, shapes: Mapping[str, Any], count: int) -> int:
        """How many classes its head has, in a model of these `shapes` by name with `count` classes."""
        for name, tensor in self.whole.items():
            shape = shapes.get(name)
            if shape and shape[0] == count != len(tensor) and tensor.shape[1:] == shape[1:]:
                return len(tensor)
        return count

    def check_finite(self, source: str) -> None:
        """InputError naming a tensor that holds NaN or infinity."""
        for path, delta in self.changes.items():
            if not all(map(all_finite, delta.tensors())):
                raise InputError(f"{source}: the change of {path} is not finite; give an adapter from before that")
        for name, tensor in self.whole.items():
            if not all_finite(tensor):
                raise InputError(f"{source}: {name} is not finite; give an adapter from before that")


def name_in(model: Any, name: str, known: Container[str]) -> str:
    """A name as a model of transformers knows it, whether the base model's prefix lacks or not.

    Raises:
        KeyError: it is not among those that are known, with the prefix nor without.
    """
    prefix = f"{model.base_model_prefix}."
    for each in (name, prefix + name, name.removeprefix(prefix)):
        if each in known:
            return each
    raise KeyError(name)


def check_same_backbone(updates: Mapping[str, Update]) -> None:
    """InputError for updates, by source, whose backbones differ by digest, or whose changes of one map by shape."""
    known = {source: update.digest for source, update in updates.items() if update.digest}
    for (one, digest), (other, another) in pairwise(known.items()):
        if not same_backbone(digest, another):
            raise InputError(f"{one} and {other} are adapters of different backbones; give those of one")
    seen: dict[str, tuple[str, tuple[int, int]]] = {}
    for source, update in updates.items():
        for path, delta in update.changes.items():
            first, shape = seen.setdefault(path, (source, delta.shape))
            if shape != delta.shape:
                raise InputError(
                    f"{path} is {shape[0]} x {shape[1]} in {first} and {delta.shape[0]} x {delta.shape[1]} in "
                    f"{source}; give adapters of one backbone"
                )


def sources_within(source: str, origin: Mapping[str, Any]) -> set[str]:
    """A source, and all that it lies on or was merged of, by their paths, as far as its update's origin says."""
    inner = [origin[key] for key in ("on_top_of", "sources") if isinstance(origin.get(key), Mapping)]
    return {abspath(source)}.union(*(sources_within(each, about) for one in inner for each, about in one.items()))
