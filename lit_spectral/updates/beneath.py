"""Changes that lie in a model's own weights, frozen, beneath what is trained on top of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_spectral.adapters import packed
from lit_spectral.adapters.dense import put_changed
from lit_spectral.adapters.linear import is_quantised, weight_matrix
from lit_spectral.errors import InputError
from lit_spectral.spectra.linalg import all_finite
from lit_spectral.updates.delta import Delta, Pair
from lit_spectral.updates.update import Update

__all__ = ["beneath", "check_beneath", "of_saved", "on_top", "parameters_beneath", "put_beneath", "to_saved"]

# Of the model: the update that is in its weights.
KEPT_AS = "_lit_spectral_beneath"
# As a part of a tensor's size: what other machines' rounding may make of the same sources.
SLACK = 1e-4


@torch.no_grad()
def put_beneath(model: nn.Module, update: Update) -> None:
    """Add every ΔW to its weight, in float32 and rounded once, put whole tensors in place, and remember both.

    Args:
        model: of transformers, whole, without adapters; with a linear map or tensor for every name of the update.
        update: whose names are the model's.

    Raises:
        InputError: a weight that is quantised or tied, or one that can't hold the sum; then the model is of no use.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for path in update.changes:
        merge = "merge them into a backbone of its own first (lit-spectral export --to merged)"
        if is_quantised(modules[path]):
            raise InputError(f"the weight of {path} is quantised, and codes can't hold W₀ + ΔW; {merge}")
        if owners[id(modules[path].weight)] > 1:
            raise InputError(f"the weight of {path} is tied to another module's, which would change too; {merge}")
    for path, delta in update.changes.items():
        weight = weight_matrix(modules[path])
        put_changed(modules[path], weight, delta)
        if not all_finite(weight):
            raise InputError(f"W₀ + ΔW of {path} is beyond what {weight.dtype} holds; give --model.dtype float32")
    tensors = model.state_dict()
    for name, value in update.whole.items():
        tensors[name].copy_(value)
    vars(model)[KEPT_AS] = update


def beneath(model: nn.Module) -> Update | None:
    """What `put_beneath` has put into a model's weights."""
    found: Update | None = vars(model).get(KEPT_AS)
    return found


def parameters_beneath(model: nn.Module) -> set[int]:
    """Ids of the parameters, adapted or not, whose values `put_beneath` has changed."""
    update = beneath(model)
    if update is None:
        return set()
    names = {f"{path}.weight" for path in update.changes} | update.whole.keys()
    parameters = model.named_parameters(remove_duplicate=False)
    return {id(parameter) for name, parameter in parameters if name.replace(".base_layer.", ".") in names}


def on_top(update: Update, earlier: Update) -> Update:
    """Both as one update of the backbone: changes summed, exactly; of whole tensors the later.

    Args:
        update: of the weights that have `earlier` in them: where it multiplies these (HiRA),
            (W₀ + ΔW) ⊙ (A B) = W₀ ⊙ (A B) + ΔW ⊙ (A B).
        earlier: of the backbone.
    """
    changes = dict(earlier.changes)
    for path, delta in update.changes.items():
        parts = [delta]
        if path in earlier.changes:
            parts.append(earlier.changes[path])
            if delta.hadamard is not None:
                parts.append(_entrywise(earlier.changes[path], delta.hadamard))
        changes[path] = Delta.added(parts)
    origin = {**update.origin, **earlier.origin}
    return replace(update, changes=changes, whole={**earlier.whole, **update.whole}, origin=origin)


def check_beneath(saved: Any, ours: Update | None) -> None:
    """InputError unless a checkpoint's adapter lay on what this model's lies on; `saved` is of `to_saved`, or None."""
    theirs = None if saved is None else of_saved(saved, "checkpoint")
    if (theirs is None) != (ours is None):
        one, other = ("none", "some") if theirs is None else ("some", "none")
        raise InputError(
            f"the checkpoint's adapter lies on top of {one} of earlier ones, and the model's on top of {other}; give "
            "--model.method.on_top_of as it was"
        )
    if theirs is None or ours is None:
        return
    if (
        not _alike(theirs.whole, ours.whole)
        or theirs.changes.keys() != ours.changes.keys()
        or any(_differ(delta, ours.changes[path]) for path, delta in theirs.changes.items())
    ):
        raise InputError(
            "the checkpoint's adapter lies on top of others than those that --model.method.on_top_of names, as they "
            "are now; give those that were there when its run began"
        )


def to_saved(update: Update) -> dict[str, Any]:
    """As a checkpoint holds it: tensors by name, and primitive values."""
    origin = json.loads(json.dumps(dict(update.origin), default=str))
    return {"changes": packed(_changes(update)), "whole": packed(dict(update.whole)), "origin": origin}


def of_saved(saved: Any, source: str) -> Update:
    """What `to_saved` gave; InputError, naming the source, for anything else, or what isn't finite."""
    changes: dict[str, dict[str, Tensor]] = defaultdict(dict)
    try:
        if not all(isinstance(tensor, Tensor) for part in ("changes", "whole") for tensor in saved[part].values()):
            raise TypeError("not all of it are tensors")
        for name, tensor in saved["changes"].items():
            path, _, part = name.rpartition(".")
            changes[path][part] = tensor
        deltas = {path: _change(parts) for path, parts in changes.items()}
        update = Update(deltas, dict(saved["whole"]), origin=dict(saved["origin"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{source}: what its adapter lies on is not as fit writes it ({error}); give one that is"
        ) from None
    update.check_finite(source)
    return update


def _change(parts: dict[str, Tensor]) -> Delta:
    """The change of these parts; ValueError where they are none of one."""
    delta = Delta.of_parts(parts)
    pairs = [pair for pair in (delta.factors, delta.hadamard) if pair is not None]
    shapes = {(len(left), right.shape[1]) for left, right in pairs if left.shape[1] == len(right)}
    if delta.matrix is not None:
        shapes.add((delta.matrix.shape[0], delta.matrix.shape[1]))
    if any(part.ndim != 2 for part in parts.values()) or len(shapes) != 1 or delta.parts().keys() != parts.keys():
        raise ValueError(f"no change has parts {', '.join(parts)} of these shapes")
    return delta


def _changes(update: Update) -> dict[str, Tensor]:
    return {f"{path}.{part}": each for path, delta in update.changes.items() for part, each in delta.parts().items()}


def _alike(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether tensors by name are the same, or differ by what rounding may make."""
    if some.keys() != others.keys():
        return False
    pairs = [(one, others[name]) for name, one in some.items() if one is not others[name]]
    return all(a.shape == b.shape and (a - b).norm() <= SLACK * a.norm() for a, b in pairs)


def _differ(one: Delta, other: Delta) -> bool:
    """Whether two changes do; thin ones by their products, whose factors may have other signs."""
    if _alike(one.parts(), other.parts()):
        return False
    if not (one.is_thin and other.is_thin) or one.shape != other.shape:
        return True
    between = Delta.added([one, other.scaled(-1)]).singular_values().norm()
    return bool(between > SLACK * one.singular_values().norm())


def _entrywise(delta: Delta, by: Pair) -> Delta:
    """ΔW ⊙ (A B): of factors again factors, those of (L R) ⊙ (A B) all products of a column of each, and of a row."""
    return Delta(
        delta.factors and _product(delta.factors, by),
        delta.hadamard and _product(delta.hadamard, by),
        None if delta.matrix is None else delta.matrix * (by.left @ by.right),
    )


def _product(one: Pair, other: Pair) -> Pair:
    left = (one.left[:, :, None] * other.left[:, None, :]).flatten(1)
    right = (one.right[:, None, :] * other.right[None, :, :]).flatten(0, 1)
    return Pair(left, right)
