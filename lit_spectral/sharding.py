"""A frozen backbone in shards, one on each process (torch's FSDP2); what is trained stays whole on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lit_spectral.errors import InputError, refusals_of

__all__ = ["gathered", "is_sharded", "shard", "shared_out", "whole"]

T = TypeVar("T")

# Entries of whole weights that a process holds while it computes their spectra: 1 GiB in float32.
ROUND = 2**28


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a shard of a tensor, of which other processes have the rest."""
    return hasattr(tensor, "full_tensor")  # by name: importing DTensor takes long


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, for which all processes must ask at once; any other as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within it, the sharded parameters of a module and those in it are whole; all processes must enter it at once."""
    owners = [(each, name, p) for each in module.modules() for name, p in each._parameters.items() if p is not None]
    owners = [(each, name, p) for each, name, p in owners if is_sharded(p)]
    for each, name, parameter in owners:
        each._parameters[name] = nn.Parameter(whole(parameter.detach()), requires_grad=False)
    try:
        yield
    finally:
        for each, name, parameter in owners:
            each._parameters[name] = parameter


def shard(model: nn.Module, encoder: nn.Module, kept: set[nn.Parameter], device: torch.device) -> None:
    """Leave each process its part of a model's parameters, put together block by block as the model runs.

    A block is what lies in an outermost `nn.ModuleList`; embeddings, norms and a head beside the blocks go together.
    Parameters that are made afterwards, as adapters', are whole.

    Args:
        model: frozen, on any device; its own `forward` and the encoder's may be called, by all processes at once.
        encoder: a part of it, or all.
        kept: parameters that stay whole.
        device: where shards and all else are put.

    Raises:
        InputError: blocks that share a parameter.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    ignored = kept | {parameter for parameter in model.parameters() if parameter.ndim == 0}
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True, "ignored_params": ignored}
    with refusals_of("trainer.strategy", f"fsdp2 can't shard {type(model).__name__}; give ddp"):
        for block in _blocks(model):
            fully_shard(block, **options)
        fully_shard(model, **options)
        # Else the first module that runs, a block of an encoder that is read by itself, would be taken for the root.
        fully_shard.state(model)._lazy_init()  # type: ignore[attr-defined]
    model.to(device)
    if encoder is not model:
        _open_for(encoder, model)


def shared_out(compute: Callable[[Mapping[str, Tensor]], dict[str, T]], weights: Mapping[str, Tensor]) -> dict[str, T]:
    """What `compute` gives for weights by name; of sharded ones each is computed on one process, for all.

    Processes ask for the same weights at once. Each has a few whole ones of its own at a time.

    Raises:
        InputError: as `compute`, on all processes.
    """
    # All are or none: a look at each would make those of quantised maps.
    if not weights or not is_sharded(next(iter(weights.values()))):
        return compute(weights)
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    found: dict[str, T] = {}
    for names in _rounds(weights, ROUND * world):
        mine: dict[str, Tensor] = {}
        for index, name in enumerate(names):
            weight = whole(weights[name])
            if index % world == rank:
                mine[name] = weight
        found |= _exchanged(lambda mine=mine: compute(mine) if mine else {})  # type: ignore[misc]
    return {name: found[name] for name in weights}


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Members of the outermost lists that have parameters."""
    blocks: list[nn.Module] = []
    for child in model.children():
        if not isinstance(child, nn.ModuleList):
            blocks += _blocks(child)
            continue
        for member in child:
            if isinstance(member, (nn.ModuleList, nn.ModuleDict)):
                blocks += _blocks(member)
            elif any(True for _ in member.parameters()) and member not in blocks:
                blocks.append(member)
    return blocks


def _rounds(weights: Mapping[str, Tensor], entries: int) -> Iterator[list[str]]:
    """Names in their order, as many at a time as have so many entries."""
    names: list[str] = []
    taken = 0
    for name, weight in weights.items():
        names.append(name)
        taken += weight.numel()
        if taken >= entries:
            yield names
            names, taken = [], 0
    if names:
        yield names


def _exchanged(compute: Callable[[], dict[str, T]]) -> dict[str, T]:
    """What all processes have computed; an InputError of one is raised on all, so that none waits for it."""
    found: dict[str, T] = {}
    trouble: str | None = None
    try:
        found = compute()
    except InputError as error:
        trouble = str(error)
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, (found, trouble))
    for _, said in parts:
        if said is not None:
            raise InputError(said)
    return {name: value for part, _ in parts for name, value in part.items()}


def _open_for(encoder: nn.Module, model: Any) -> None:
    """Let an encoder be called by itself, as its model is.

    Embeddings go with what lies beside blocks, and are put together when the model is called. What a call that failed
    has left behind is cleared away, so that another may follow.
    """
    running = False

    def enter(*_: Any) -> None:
        nonlocal running
        running = True

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal running
        running = False
        if output is None:
            model.reset_iter_state()

    def enter_alone(*_: Any) -> None:
        if not running:
            model.unshard()

    def leave_alone(module: nn.Module, args: Any, output: Any) -> None:
        if not running:
            model.reshard() if output is not None else model.reset_iter_state()

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)
    encoder.register_forward_pre_hook(enter_alone)
    encoder.register_forward_hook(leave_alone, always_call=True)
