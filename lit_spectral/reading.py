"""What a model does when it reads text: tried on random tokens, which need no data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_spectral.errors import InputError

__all__ = ["Call", "Reading", "evaluating", "forward_of", "place", "read", "watched", "window"]

LENGTH = 16


class Call(NamedTuple):
    """A module that was called, by its path, and the tensor that it was given."""

    name: str
    given: Tensor


class Reading:
    """What a model's modules do while it reads a few tokens; found when it is first asked for.

    Args:
        encoder: a model of transformers, or any module; of one that can't be read with nothing is known.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._encoder = encoder

    @cached_property
    def calls(self) -> list[Call] | None:
        """Every call of a module that has no children, or wraps a linear map, in order; None where nothing is known.

        A weight that a model reads without calling its module is in no call.
        """
        calls: list[Call] = []
        leaves = {
            name: module
            for name, module in self._encoder.named_modules()
            if not any(module.children()) or hasattr(module, "base_layer")
        }
        try:
            with watched(leaves, lambda name, given: calls.append(Call(name, given))):
                self._read()
        except Exception:  # custom code may want more than tokens
            return None
        return calls

    def uses(self, name: str) -> bool:
        """Whether the module of this path is called, or another expert in its place; True where nothing is known."""
        return self._places is None or place(name) in self._places

    @cached_property
    def _places(self) -> set[str] | None:
        return None if self.calls is None else {place(call.name) for call in self.calls}

    @cached_property
    def causal(self) -> bool:
        """Whether no state depends on tokens behind its own; False where nothing is known."""
        try:
            first, second = self._read(), self._read(last=1)
        except Exception:
            return False
        before, after = first[:, :-1].float(), second[:, :-1].float()
        # Experts and low precision round by what else is in a batch.
        rounding = 1e-4 if first.dtype in {torch.float32, torch.float64} else 0.02
        return float((before - after).abs().max()) <= rounding * float(before.std())

    def _read(self, last: int = 0) -> Tensor:
        """States (1, length, width) on tokens of which the last is another one for another `last`."""
        tokens = _random_tokens(self._encoder, 1, LENGTH)
        tokens[0, -1] = (tokens[0, -1] + last) % len(_embedded(self._encoder))
        output: Any = read(self._encoder, tokens)
        states: Tensor = output[0]
        return states


def place(path: str) -> str:
    """A path without the number of an expert: which of them are called depends on the text."""
    return re.sub(r"(expert[a-z_]*[._])\d+", r"\1#", path)


@torch.no_grad()
def read(encoder: nn.Module, tokens: Tensor | tuple[int, int]) -> Any:
    """What a model of transformers gives for token ids (rows, length), or random ones of that shape; in eval mode.

    The random tokens are the same at every call. Modes and random states are as they were, after it.

    Raises:
        InputError: a model that has no token embeddings.
    """
    if isinstance(tokens, tuple):
        tokens = _random_tokens(encoder, *tokens)
    tokens = tokens.to(_embedded(encoder).device)
    with evaluating(encoder):
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if getattr(getattr(encoder, "config", None), "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = tokens
        return encoder(**inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, all modules are in eval mode; afterwards each is in the mode that it was in."""
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        model.eval()
        yield


@contextmanager
def forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within it, calling `module` runs `forward`; its hooks run as ever."""
    before = vars(module).get("forward")  # where others, or this, have put another one on the module itself
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


@contextmanager
def watched(modules: Mapping[str, nn.Module], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within it, `look` is called with a module's name and the tensor that it is given, before it computes."""

    def before(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = next((value for value in (*args, *named.values()) if isinstance(value, Tensor)), None)
        if given is not None:
            look(name, given)

    with ExitStack() as stack:
        for name, module in modules.items():
            hook = module.register_forward_pre_hook(
                lambda _, args, named, name=name: before(name, args, named), with_kwargs=True
            )
            stack.callback(hook.remove)
        yield


def _embedded(encoder: nn.Module) -> Tensor:
    """The embeddings of all tokens (tokens, width)."""
    embeddings: Any = getattr(encoder, "get_input_embeddings", lambda: None)()
    if embeddings is None:
        raise InputError(f"{type(encoder).__name__} has no token embeddings to read with")
    weight: Tensor = embeddings.weight
    return weight


def window(model: nn.Module, most: int) -> int:
    """Tokens of a row that any model of its kind can read, at most so many."""
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None) or 2 * most
    return min(most, int(longest) // 2)  # half: some architectures' positions don't start at 0


def _random_tokens(encoder: nn.Module, rows: int, length: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (rows, window(encoder, length))
    return torch.randint(_embedded(encoder).shape[0], shape, generator=generator, device="cpu")
