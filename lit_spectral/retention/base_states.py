"""What the base model makes of fixed texts, which never changes, kept for the next time."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lit_spectral.reading import forward_of

__all__ = ["BaseStates"]

# Of states that are kept; what comes after is computed anew each time.
ROOM = 2**30


class BaseStates:
    """Last hidden states of the base model, by batch, on the CPU.

    Logits would take tens of times the memory, and the head that makes them is a small part of the work.

    Args:
        room: bytes that may be kept.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._kept: dict[Hashable, Any] = {}  # outputs of transformers' kinds, which the head takes

    @contextmanager
    def given(self, body: nn.Module, batch: Hashable) -> Iterator[None]:
        """Within it `body`, the model without its head, returns what it first did for this batch.

        Only last hidden states: whatever else it returned, a head for which they don't suffice can't be measured so.
        """
        compute = body.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if batch in self._kept:
                kept = self._kept[batch]
                return type(kept)(last_hidden_state=kept.last_hidden_state.to(next(body.parameters()).device))
            found = compute(*args, **kwargs)
            states = found.last_hidden_state
            if states.nbytes <= self._room:
                self._room -= states.nbytes
                self._kept[batch] = type(found)(last_hidden_state=states.cpu())
            return found

        with forward_of(body, forward):
            yield
