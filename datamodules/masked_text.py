"""Plain text for masked-language modelling."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from lit_spectral.datamodules.corpora import PYTHON_DOCS, read_passages, read_training_passages
from lit_spectral.datamodules.fraction import check_fraction, split_by_fraction
from lit_spectral.datamodules.text import TextDataModule
from torch import Tensor

from lit_spectral.errors import InputError, check_at_least

__all__ = ["MASK_FRACTION", "MaskedText", "mask_tokens"]

MASK_FRACTION = 0.15


class MaskedText(TextDataModule):
    """Lines of text of which a part of the tokens is to be restored (Devlin et al., 2019).

    Of the chosen tokens 80 % become the mask, 10 % another token, 10 % stay. Masks
    depend on `seed` and the row alone, those of training on the epoch too: the same for every model and batch size.

    Args:
        path: as in `TextWindows`, one passage a line.
        limit: passages to read, from the start, and no more is read; None for all.
        mask_fraction: of a row's tokens, chosen to be restored, in (0, 1).
        validation_fraction: of the lines, the last ones after a seeded shuffle; 1 for all, in their order.
        batch_size: as in `TextDataModule`.
        max_length: as in `TextDataModule`.
        settings: of `TextDataModule`; its `seed` is also that of the split and the masks.
    """

    def __init__(
        self,
        path: str = PYTHON_DOCS,
        limit: int | None = None,
        mask_fraction: float = MASK_FRACTION,
        validation_fraction: float = 0.05,
        batch_size: int = 64,
        max_length: int = 128,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, max_length=max_length, **settings)
        if not 0 < mask_fraction < 1:
            raise InputError(f"mask_fraction lies between 0 and 1; it is {mask_fraction}")
        check_fraction(validation_fraction)
        check_at_least(2, limit=limit)
        self.path = path
        self.limit = limit
        self.mask_fraction = mask_fraction
        self.validation_fraction = validation_fraction

    def tokenised(self, name: str) -> Any:
        """Rows of token ids, `special_tokens_mask` and `row`, its number, which seeds its masks."""
        import datasets

        rows = datasets.Dataset.from_dict({"text": self._lines()})
        rows = split_by_fraction(rows, name, self.validation_fraction, self.seed)
        tokenizer, longest = self.tokenizer, self._room()

        def encode(batch: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
            options = {"truncation": True, "max_length": longest, "return_special_tokens_mask": True}
            return {**tokenizer(batch["text"], **options), "row": numbers}

        description = f"tokenising {name}"
        return rows.map(encode, batched=True, with_indices=True, remove_columns=["text"], desc=description)

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """Masked ids, and `labels` that are -100 except where a token is to be restored."""
        return self._masked(rows, self.seed * 1_000_003)

    def collate_training(self, rows: list[dict[str, Any]]) -> Any:
        """The same with other tokens in each epoch."""
        return self._masked(rows, self.seed * 1_000_003 + (int(self._epoch) + 1) * 2_654_435_761)

    def _masked(self, rows: list[dict[str, Any]], seed: int) -> Any:
        if self.tokenizer.mask_token_id is None:
            raise InputError("data: the tokenizer has no mask token; MaskedText is for encoders of masked words")
        numbers = [row.pop("row") for row in rows]
        batch = super().collate(rows)
        special = batch.pop("special_tokens_mask").bool()
        draws = _draws(numbers, special.shape[1], seed)
        batch["input_ids"], batch["labels"] = mask_tokens(
            batch["input_ids"], special, draws, self.tokenizer, self.mask_fraction
        )
        return batch

    def _lines(self) -> list[str]:
        read = read_passages if self.validation_fraction == 1 else read_training_passages
        stripped = (line.strip() for text in read(self.path) for line in text.splitlines())
        lines = list(islice(filter(None, stripped), self.limit))
        if len(lines) < 2:
            raise InputError(f"data.path: {self.path} has fewer than two lines of text")
        return lines


def mask_tokens(
    ids: Tensor, special: Tensor, draws: Tensor, tokenizer: Any, fraction: float = MASK_FRACTION
) -> tuple[Tensor, Tensor]:
    """Token ids of which a part is to be restored, and labels that are -100 elsewhere, both (rows, length).

    Args:
        ids: token ids (rows, length).
        special: which of them are never chosen, (rows, length).
        draws: uniform in [0, 1), (rows, length): what is below `fraction` is chosen.
        tokenizer: that of the ids, with a mask token.
        fraction: of the tokens, in (0, 1).
    """
    chosen = (draws < fraction) & ~special
    # The same draw says what becomes of a chosen token: below 80 % of the range it is masked.
    part = draws / fraction
    masked = ids.masked_fill(chosen & (part < 0.8), tokenizer.mask_token_id)
    replaced = chosen & (part >= 0.8) & (part < 0.9)
    other = ((part - 0.8) * 10 * len(tokenizer)).long().clamp(0, len(tokenizer) - 1)
    return torch.where(replaced, other, masked), ids.masked_fill(~chosen, -100)


def _draws(numbers: list[int], length: int, seed: int) -> Tensor:
    """Uniform draws (rows, length) that depend on seed, row number and position only."""
    draws = torch.empty(len(numbers), length)
    for row, number in enumerate(numbers):
        generator = torch.Generator().manual_seed((seed + number) % 2**32)  # torch's generator takes no more bits
        draws[row] = torch.rand(max(length, 4096), generator=generator)[:length]  # alike at every length
    return draws
