"""The model as it was before it was adapted, out of the adapted one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_spectral import backbones
from lit_spectral.adapters import Wrapper, refuse_folded
from lit_spectral.errors import InputError
from lit_spectral.reading import forward_of
from lit_spectral.sharding import is_sharded
from lit_spectral.updates.beneath import parameters_beneath

if TYPE_CHECKING:
    from lit_spectral.tasks import Task

__all__ = ["base_model", "changed_weights", "inner_model", "original_weights", "own_parameters"]


def inner_model(task: Task) -> Any:
    """The transformers model inside whatever peft has put round it."""
    from peft import PeftModel

    return task.model.get_base_model() if isinstance(task.model, PeftModel) else task.model


def changed_weights(task: Task) -> set[str]:
    """Names of the pretrained weights that are trained themselves, and of new ones among them.

    Full fine-tuning and BitFit train such, and what they have left may be given; of other methods there are none.
    """
    return _named_among(task, {id(p) for p in inner_model(task).parameters() if p.requires_grad})


def original_weights(task: Task) -> dict[str, Tensor]:
    """Values before training of those weights of the backbone that have others now, by name, from its files.

    Of those that are trained, and of those that what a method is `on_top_of` lies in.

    Raises:
        InputError: they are in shards.
    """
    model = inner_model(task)
    earlier = parameters_beneath(model)
    if earlier and any(is_sharded(parameter) for parameter in model.parameters()):
        raise InputError(
            "trainer.strategy: fsdp2 has weights in shards, where those of the backbone alone can't be put back to be "
            "measured; give ddp, or the checkpoint to lit-spectral retain"
        )
    changed = changed_weights(task) | _named_among(task, earlier)
    if not changed:
        return {}
    fresh, missing = task.load_model(backbones.fetch(task.backbone))
    return {name: p.detach() for name, p in fresh.named_parameters() if name in changed and name not in missing}


def _named_among(task: Task, parameters: set[int]) -> set[str]:
    """Names, in the model without adapters, of those of these parameters (by id) that are the backbone's own."""
    own = {id(p) for p in own_parameters(task)}
    return {_plain(name) for name, p in inner_model(task).named_parameters() if id(p) in parameters & own}


def own_parameters(task: Task) -> list[nn.Parameter]:
    """Those of the backbone, with its head where that was pretrained too, and none that adapters have added."""
    wrappers = [module for module in inner_model(task).modules() if _adds(module)]
    added = {id(p) for w in wrappers for name, p in w.named_parameters() if not name.startswith("base_layer.")}
    return [p for p in _pretrained(task).parameters() if id(p) not in added]


def _pretrained(task: Task) -> Any:
    """The encoder, with its head where that was pretrained too."""
    model = inner_model(task)
    return getattr(model, model.base_model_prefix) if task.trains_head else model


@contextmanager
def base_model(task: Task, originals: dict[str, Tensor]) -> Iterator[None]:
    """Within it, the task's model computes what its backbone did, with the new head that it has now.

    Args:
        task: with its model configured.
        originals: of `original_weights`, where they are not the model's own.
    """
    from peft import PeftModel

    model = inner_model(task)
    refuse_folded(model, "retention")
    with ExitStack() as stack:
        if isinstance(task.model, PeftModel):
            stack.enter_context(task.model.disable_adapter())
        # A head stays as it is, also one that peft has copied.
        for module in _pretrained(task).modules():
            if isinstance(module, Wrapper):
                stack.enter_context(forward_of(module, module.base_layer))
            elif _adds(module) and not isinstance(task.model, PeftModel):
                module.enable_adapters(False)
                stack.callback(module.enable_adapters, True)
        if originals:
            stack.enter_context(_exchanged(model, originals))
        yield


def _adds(module: nn.Module) -> bool:
    """Whether the module adds parameters to a layer that it wraps: an adapter of ours or of peft, or peft's copy."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, (Wrapper, BaseTunerLayer, AuxiliaryTrainingWrapper))


def _plain(name: str) -> str:
    """A parameter's name in the model without adapters."""
    return name.replace(".base_layer.", ".")


@contextmanager
def _exchanged(model: nn.Module, originals: dict[str, Tensor]) -> Iterator[None]:
    with torch.no_grad():
        parameters = {_plain(name): p for name, p in model.named_parameters()}
        now = {name: parameters[name].detach().clone() for name in originals}
    try:
        with torch.no_grad():
            for name, value in originals.items():
                parameters[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in now.items():
                parameters[name].copy_(value)
