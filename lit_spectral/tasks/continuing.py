"""What training begins with, keeps out of, and lies on: adapters that `start_from`, `after` and `on_top_of` name."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lit_spectral.adapters import Adapter, named_changes
from lit_spectral.adapters.dense import put_changed
from lit_spectral.adapters.linear import is_linear, linear_shape, weight_matrix
from lit_spectral.adapters.start import product_triplets
from lit_spectral.backbone_digest import same_backbone
from lit_spectral.errors import InputError
from lit_spectral.tasks.averaging import begin_averages
from lit_spectral.updates import Delta, Update
from lit_spectral.updates.beneath import put_beneath
from lit_spectral.updates.merging import merge
from lit_spectral.updates.sources import read
from lit_spectral.updates.update import name_in, sources_within

if TYPE_CHECKING:
    from lit_spectral.tasks.base import Task

__all__ = ["begin", "keep_out", "stand_on"]

log = logging.getLogger(__name__)


def begin(task: Task) -> None:
    """Set a task's adapters, its head and what else it trains to those of its method's `start_from`, if it names one.

    Raises:
        InputError: it changes what the method doesn't train, an adapter can't begin there, or another backbone's.
    """
    source, method = task.method.start_from, type(task.method).__name__
    if source is None:
        return
    with _told("model.method.start_from", source):
        update = _read(source, task)
        changes = _placed(task.model, update)
        _check_apart(source, update, changes, task.beneath)
        left = _start_others(task.model, update.whole, method)
        _start_maps(task.model, changes, method)
    task.is_trained = True
    begin_averages(task.trainer, task)
    log.info("training begins at %s: %d maps and %d tensors", source, len(changes), len(update.whole) - len(left))
    if left:
        log.warning("%s in %s: this model's head has another form, and begins as ever", _some(left), source)


def keep_out(task: Task) -> None:
    """Have a task's adapters keep out of the row and column spaces of all changes that its method's `after` names.

    Raises:
        InputError: a change of full rank, a method that can't keep out, no room, or another backbone's.
    """
    spaces: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for source in _listed(getattr(task.method, "after", None)):
        with _told("model.method.after", source):
            for path, delta in _placed(task.model, _read(source, task)).items():
                if delta.factors is None or not delta.is_thin:
                    raise InputError(
                        f"the change of {path} is of full rank, which leaves no room; truncate it first (lit-spectral "
                        "export --rank)"
                    )
                u, _, v = product_triplets(delta.factors.left, delta.factors.right.mT)
                spaces.setdefault(path, []).append((u, v))
    for path, adapter in _adapters(task.model).items():
        if path in spaces:
            with _told("model.method.after", path):
                adapter.avoid(*(torch.cat(side, dim=1) for side in zip(*spaces[path], strict=True)))


def stand_on(task: Task, model: Any) -> None:
    """Put what lies beneath a task's adapters into its model's weights, frozen: what a checkpoint says, or `on_top_of`.

    Args:
        task: whose backbone's digest is known.
        model: of transformers, as its files are, not adapted yet.

    Raises:
        InputError: no changes of this backbone's maps, another backbone's, or weights that can't hold them.
    """
    sources = _listed(task.method.on_top_of)
    found = task.beneath
    if found is None and sources:
        found = _summed(task, model, sources)
    if found is None:
        return
    with _told("model.method.on_top_of"):
        found = replace(found, changes=_placed(model, found), whole=_fitting(model, found, "the checkpoint"))
        put_beneath(model, found)
    task.beneath = found
    log.info("on top of %s: %d maps and %d tensors", _some(sources), len(found.changes), len(found.whole))


def _summed(task: Task, model: Any, sources: list[str]) -> Update:
    """The sum of all sources by the model's own names; of heads that which the last has for this model."""
    updates: dict[str, Update] = {}
    for source in sources:
        with _told("model.method.on_top_of", source):
            update = _read(source, task)
            within = sources_within(source, update.origin)
            for other, earlier in updates.items():
                if within & sources_within(other, earlier.origin):
                    raise InputError(f"what is in {other} is in {source} too, and would count twice; give it once")
            updates[source] = replace(update, changes=_placed(model, update), whole=_fitting(model, update, source))
    with _told("model.method.on_top_of"):
        # Of several heads it keeps the first.
        summed = merge(dict(reversed(updates.items()))).update
    return replace(
        summed,
        origin={"on_top_of": {os.path.abspath(source): dict(update.origin) for source, update in updates.items()}},
    )


def _fitting(model: Any, update: Update, source: str) -> dict[str, Tensor]:
    """Whole tensors by their names in this model, but for those of a head that it hasn't got."""
    state, prefix = model.state_dict(), f"{model.base_model_prefix}."
    found, left = {}, []
    for name, value in update.whole.items():
        try:
            place = name_in(model, name, state)
        except KeyError:
            place = name
        if place in state and state[place].shape == value.shape:
            found[place] = value
        elif name.startswith(prefix) and "pooler" not in name.split("."):
            raise InputError(f"{name} is no tensor of this model, or one of another shape; give its own backbone")
        else:
            left.append(name)
    if left:
        log.warning("%s in %s: this model's head has another form, and begins as ever", _some(sorted(left)), source)
    return found


def _check_apart(source: str, update: Update, changes: Mapping[str, Delta], beneath: Update | None) -> None:
    """InputError where a change that training is to begin at lies beneath already, or counts on W₀ that it changed."""
    if beneath is None:
        return
    for other, origin in beneath.origin["on_top_of"].items():
        if sources_within(source, update.origin) & sources_within(other, origin):
            raise InputError(f"{other}, which on_top_of names, is in it; leave on_top_of out, to go on with all of it")
    for path, delta in changes.items():
        if delta.hadamard is not None and path in beneath.changes:
            raise InputError(
                f"the change of {path} multiplies the backbone's weight, which is another on top of on_top_of; leave "
                "that out"
            )


@contextmanager
def _told(*where: str) -> Iterator[None]:
    """Within it, what is wrong is said of this setting, source or map."""
    try:
        yield
    except ValueError as error:
        named = [each for each in where if each not in str(error)]
        raise InputError(": ".join([*named, str(error)])) from None


def _read(source: str, task: Task) -> Update:
    """An update of the task's backbone; the model that may be loaded for it leaves the run's random numbers alone."""
    with isolate_rng(), torch.device("cpu"):
        update = read(source, task.backbone)
    if update.digest and not same_backbone(update.digest, task.backbone_digest):
        raise InputError("it was trained on a backbone with other weights; give --model.backbone with that one")
    return update


def _adapters(model: nn.Module) -> dict[str, Any]:
    return {path: change for path, change in named_changes(model).items() if isinstance(change, Adapter)}


def _placed(model: Any, update: Update) -> dict[str, Delta]:
    """Changes by their paths in this model, which may have the base model's prefix where theirs lack it.

    Raises:
        InputError: one of another shape, or where there is no linear map.
    """
    modules, changes = dict(model.named_modules()), {}
    for path, delta in update.changes.items():
        try:
            place = name_in(model, path, modules)
            layer = getattr(modules[place], "base_layer", modules[place])
        except KeyError:
            layer = None
        if layer is None or not is_linear(layer) or linear_shape(layer) != delta.shape:
            raise InputError(f"{path} is no linear map of this model, or one of another shape; give its own backbone")
        changes[place] = delta
    return changes


def _start_maps(model: nn.Module, changes: Mapping[str, Delta], method: str) -> None:
    attached, modules = _adapters(model), dict(model.named_modules())
    trained = {path for path in changes if path in attached or _is_trained(modules[path])}
    if idle := sorted(changes.keys() - trained):
        raise InputError(
            f"{method} leaves maps alone that this changes ({_some(idle)}); name them in "
            "--model.method.target_modules, or give FullFineTuning"
        )
    for path, delta in changes.items():
        if path in attached:
            with _told(path):
                attached[path].start_at(delta)
        else:
            put_changed(modules[path], weight_matrix(modules[path]), delta)


def _is_trained(layer: Any) -> bool:
    return bool(layer.weight.requires_grad)


@torch.no_grad()
def _start_others(model: Any, whole: Mapping[str, Tensor], method: str) -> list[str]:
    """Set what is trained whole; returns what belongs to another head than the model's."""
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items()}
    parameters = model.named_parameters(remove_duplicate=False)
    trained = {name.replace(".base_layer.", ".") for name, parameter in parameters if parameter.requires_grad}
    fitting = {name for name, value in whole.items() if name in state and state[name].shape == value.shape}
    inside = {name for name in whole if name.startswith(f"{model.base_model_prefix}.")}
    same = {name for name in fitting if torch.equal(state[name].float().cpu(), whole[name].float())}
    if lost := sorted((fitting | inside) - (fitting & trained) - same):
        raise InputError(
            f"{method} doesn't train all that this brings ({_some(lost)}); give FullFineTuning, or make it the "
            "backbone (lit-spectral export --to merged)"
        )
    for name in fitting & trained:
        state[name].copy_(whole[name])
    return sorted(whole.keys() - fitting)


def _listed(given: list[str] | str | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _some(names: Collection[str], shown: int = 3) -> str:
    first = list(names)[:shown]
    return ", ".join(first) + (f" and {len(names) - shown} more" if len(names) > shown else "")
