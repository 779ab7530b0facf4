"""The mean over all that an optimizer step scores, however it is cut into micro-batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Objective"]


class Objective:
    """Turns sums over micro-batches into the gradient of one mean over a step.

    A micro-batch of n tokens with summed loss ℓ gives ℓ/n̄, where n̄ is the mean of n over the processes in the
    first micro-batch of the step. What backward passes have then added up, divided by the number of
    micro-batches as Lightning does and averaged over processes as DDP does, is off by one factor, which is 1
    where there is one micro-batch: `finish` puts it right.

    Attributes:
        value: the mean loss of the last step, over all processes, 0-d; None before the first.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._nominal: Tensor | None = None  # n̄, 0-d
        self._parts: list[Tensor] = []  # sum and count of each micro-batch, (2,)

    def part(self, summed: Tensor, count: Tensor | int, trainer: Any) -> Tensor:
        """What to call backward on for a micro-batch of this process, 0-d.

        Args:
            summed: loss, 0-d, with its graph.
            count: of what it is summed over; 0 is allowed.
            trainer: Lightning's.
        """
        counted = torch.as_tensor(count, device=summed.device).to(torch.float64)
        if self._nominal is None:
            # A process may have nothing to score where another has.
            self._nominal = trainer.strategy.reduce(counted.clone(), reduce_op="mean").clamp(min=1 / trainer.world_size)
        self._parts.append(torch.stack([summed.detach().double(), counted]))
        return summed / self._nominal.to(summed.dtype)

    def finish(self, gradients: list[Tensor], trainer: Any) -> None:
        """Scale the gradients of all micro-batches of a step to that of the mean, in place, and start the next step."""
        if not self._parts:
            return
        nominal, parts = self._nominal, self._parts
        self._nominal, self._parts = None, []
        assert nominal is not None
        summed, count = trainer.strategy.reduce(torch.stack(parts).sum(0), reduce_op="sum")
        self.value = (summed / count.clamp(min=1)).float()
        if gradients and trainer.accumulate_grad_batches > 1:
            factor = trainer.accumulate_grad_batches * trainer.world_size * nominal / count.clamp(min=1)
            torch._foreach_mul_(gradients, float(factor))
