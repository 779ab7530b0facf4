"""Texts on which an adapted model and its base model are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn import functional as F

from lit_spectral import backbones
from lit_spectral.datamodules import MaskedText, TextWindows
from lit_spectral.datamodules.text import TextDataModule
from lit_spectral.errors import InputError
from lit_spectral.tasks import CausalLM, Task

__all__ = ["INPUTS", "PROMPTS", "first_rows", "next_tokens", "of_prompts", "prompt_positions", "text_of"]

# In the place of a text: what the task's own rows ask.
PROMPTS = "prompts"
# What models take of a batch.
INPUTS = ("input_ids", "token_type_ids", "attention_mask", "position_ids")


class _Lines(MaskedText):
    """The same lines with nothing masked."""

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """Ids and attention mask."""
        return TextDataModule.collate(self, [{name: row[name] for name in INPUTS if name in row} for row in rows])


def text_of(
    task: Task,
    path: str,
    masked: bool,
    limit: int | None,
    max_length: int,
    batch_size: int,
    pages: bool = False,
) -> TextDataModule:
    """A text as a data module that is set up, its rows the split `val`: of a decoder windows, of an encoder lines.

    Args:
        task: whose backbone's tokenizer cuts it.
        path: as in `TextWindows` and `MaskedText`.
        masked: whether an encoder's lines have a part of their tokens masked, and labels.
        limit: windows, pages or lines, from its start; None for all.
        max_length: tokens of a window, or of a page or line at most.
        batch_size: rows of a batch.
        pages: of a decoder, its texts one by one in place of windows over them all.

    Raises:
        InputError: a text that can't be had, or is too short.
    """
    options: dict[str, Any] = {"limit": limit, "max_length": max_length, "batch_size": batch_size}
    options["tokenizer"] = backbones.fetch(task.backbone)
    kind: Any = MaskedText if masked else _Lines
    if isinstance(task, CausalLM):
        kind, options["pages"] = TextWindows, pages
    else:
        options |= {"validation_fraction": 1, "eval_batch_size": batch_size}
    data: TextDataModule = kind(path, **options)
    data.setup("validate")
    if kind is MaskedText and all((batch["labels"] == -100).all() for batch in data.val_dataloader()[0]):
        raise InputError(f"of {path} no token was masked; give a longer text")
    return data


def first_rows(data: Any, size: int, limit: int | None) -> list[dict[str, Tensor]]:
    """Of a data module's first validation set the first `limit` rows, or all; `size` at a time where it can be set.

    Raises:
        InputError: data without a validation set.
    """
    before = vars(data).get("eval_batch_size")
    if before is not None:
        data.eval_batch_size = size
    try:
        loaders = data.val_dataloader() if is_overridden("val_dataloader", data, LightningDataModule) else []
    finally:
        if before is not None:
            data.eval_batch_size = before
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if loaders is None or (isinstance(loaders, (list, tuple)) and not loaders):
        raise InputError(f"retention: prompts are of validation rows, and {type(data).__name__} has none; give a text")
    kept: list[dict[str, Tensor]] = []
    left = limit
    for batch in loaders[0] if isinstance(loaders, (list, tuple)) else loaders:
        if left == 0:
            break
        kept.append({key: each[:left] for key, each in batch.items() if isinstance(each, Tensor)})
        left = None if left is None else left - len(kept[-1]["input_ids"])
    return kept


def of_prompts(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A decoder's batch with other labels: the tokens of prompts, but for each one's first."""
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    predicted = F.pad(prompt_positions(batch)[:, :-1], (1, 0), value=False)
    return inputs | {"labels": batch["input_ids"].masked_fill(~predicted, -100)}


def next_tokens(labels: Tensor) -> Tensor:
    """Labels (rows, length) at the position before each token, from which a decoder predicts it; -100 at the end."""
    return F.pad(labels[:, 1:], (0, 1), value=-100)


def prompt_positions(batch: dict[str, Tensor]) -> Tensor:
    """Where a decoder's batch predicts a prompt's token from the prompt before it, (rows, length), bool.

    Args:
        batch: `input_ids`, `labels` that are -100 on prompts, and `attention_mask`, or `position_ids` of packed rows.
    """
    prompt = batch["labels"] == -100
    if "attention_mask" in batch:
        prompt = prompt & batch["attention_mask"].bool()
    both = prompt[:, :-1] & prompt[:, 1:]
    if "position_ids" in batch:  # neither from one example to the next, nor in padding, where they stand still
        both = both & (batch["position_ids"].diff(dim=1) == 1)
    return F.pad(both, (0, 1), value=False)
