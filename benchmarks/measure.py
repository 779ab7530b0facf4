"""What is measured of a step: seconds taken in turns, and figures that no machine changes."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Ratio", "counts", "in_turn", "ratio"]


class Ratio(NamedTuple):
    """Median and quartiles of the ratios of rounds, and how many there were."""

    median: float
    low: float
    high: float
    rounds: int


def in_turn(
    actions: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each action in each round; a round runs all, in an order that turns; one more, first, warms up."""
    names = list(actions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(0 if warm else 1, rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            _wait(device)
            started = time.perf_counter()
            actions[name]()
            _wait(device)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> Ratio:
    """Of the two times of the same round, over the rounds."""
    found = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, _, high = statistics.quantiles(found, n=4) if len(found) > 1 else (found[0],) * 3
    return Ratio(statistics.median(found), low, high, len(found))


def counts(model: nn.Module, forward: Callable[[], torch.Tensor], step: Callable[[], object]) -> dict[str, float]:
    """ATen operations, FLOPs and peak bytes of a step beside what lived before it, and bytes kept for backward."""
    step()  # what is made once, such as the optimizer's state
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    bytes_saved = sum(saved.values())
    del loss
    with _Operations() as operations:
        step()
    in_place: Any = {torch.ops.aten.addmm_: _addmm_flops}  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping=in_place) as flops:
        step()
    return {
        "operations": operations.count,
        "peak bytes": operations.peak,
        "saved bytes": bytes_saved,
        "FLOPs": flops.get_total_flops(),
    }


def _addmm_flops(added: torch.Size, left: torch.Size, right: torch.Size, **_: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


class _Operations(TorchDispatchMode):
    """Counts operations, and the bytes that their results hold alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.peak = self._alive = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.count += 1
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):  # weights, and what was there before the step
                self._seen.add(tensor.untyped_storage()._cdata)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen:
                    self._seen.add(storage._cdata)
                    self._alive += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._alive)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._alive -= size


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
