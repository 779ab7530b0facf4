"""Plain text in windows: to measure a decoder's perplexity on, or to train it on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from lit_spectral.datamodules.corpora import read_passages, read_training_passages
from lit_spectral.datamodules.fraction import NOTHING_TO_TRAIN_ON, check_fraction, split_by_fraction
from lit_spectral.datamodules.text import TextDataModule

from lit_spectral.errors import InputError, check_at_least

__all__ = ["TextWindows"]


class TextWindows(TextDataModule):
    """Windows of a text that don't overlap, each of `max_length` tokens and read by itself.

    Texts follow each other; each window starts with the tokenizer's BOS, if it
    adds one, which counts among its tokens. The first token of a window has nothing before it and
    is not scored; the rest of the text at the end, shorter than a window, is left out. Perplexity
    falls with `max_length`: compare like with like. With `pages`, each text is read by itself instead,
    its first `max_length` tokens and no more.

    Args:
        path: a UTF-8 text file; a folder of .txt files, or of a split with a column `text`; or one
            of the papers' corpora on the hub: bookcorpus, finewiki, openwebtext, pg19, wikitext-2, wikitext-103.
        limit: windows, or pages, to read, from the start, and no more is read; None for all.
        validation_fraction: of the windows, or pages, the last ones after a seeded shuffle; 1 for all, in their
            order, and none to train on.
        pages: whether each row with a `text`, or file of text, is a page of its own.
        batch_size: windows of a batch, on each process.
        max_length: tokens of a window, at least 2.
        settings: of `TextDataModule`; its `seed` is also that of the split.
    """

    def __init__(
        self,
        path: str,
        limit: int | None = None,
        pages: bool = False,
        validation_fraction: float = 1.0,
        batch_size: int = 8,
        max_length: int = 512,
        **settings: Any,
    ) -> None:
        super().__init__(batch_size, batch_size, max_length, **settings)
        check_at_least(2, max_length=max_length)
        check_at_least(1, limit=limit)
        check_fraction(validation_fraction)
        self.path = path
        self.limit = limit
        self.pages = pages
        self.validation_fraction = validation_fraction

    def tokenised(self, name: str) -> Any:
        """The windows or pages to train or to validate on, or all, if none are trained on: rows of `input_ids`."""
        if name == "train" and self.validation_fraction == 1:  # before they are read
            raise InputError(NOTHING_TO_TRAIN_ON)
        return split_by_fraction(self._rows(), name, self.validation_fraction, self.seed)

    def _rows(self) -> Any:
        import datasets

        # Not cut to what the model reads, as rows are elsewhere: it would be another measure.
        if self._longest < self.max_length:
            raise InputError(f"data.max_length: {self.max_length} is above the {self._longest} that the model reads")
        bos = self._opening
        step = self.max_length - len(bos)
        if self.pages:
            return datasets.Dataset.from_dict({"input_ids": self._pages(bos, step)})
        ids: list[int] = []
        for text in _chunks(self._passages()):
            ids += self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if self.limit is not None and len(ids) >= self.limit * step:
                break
        starts = range(0, len(ids) - step + 1, step)[: self.limit]
        if not starts:
            raise InputError(
                f"data.path: {self.path} has {len(ids)} tokens, fewer than the {step} of a window; "
                "give a longer text, or a smaller --data.max_length"
            )
        return datasets.Dataset.from_dict({"input_ids": [bos + ids[start : start + step] for start in starts]})

    def _passages(self) -> Iterator[str]:
        return read_passages(self.path) if self.validation_fraction == 1 else read_training_passages(self.path)

    def _pages(self, bos: list[int], most: int) -> list[list[int]]:
        pages = []
        for text in islice(filter(str.strip, self._passages()), self.limit):
            ids = self.tokenizer(text.removesuffix("\n"), add_special_tokens=False, verbose=False)["input_ids"]
            if len(page := [*bos, *ids[:most]]) > 1:  # one token has nothing to be told from
                pages.append(page)
        if not pages:
            raise InputError(f"data.path: {self.path} has no page of two tokens or more; give a longer text")
        return pages

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """Windows or pages as tensors (rows, longest); all tokens are labels, -100 stands for padding."""
        batch = super().collate(rows)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch


def _chunks(texts: Iterator[str], characters: int = 2_000_000) -> Iterator[str]:
    """Texts joined until they are long enough, since tokenisers merge across short ones, such as empty lines."""
    kept: list[str] = []
    length = 0
    for text in texts:
        kept.append(text)
        length += len(text)
        if length >= characters:
            yield "".join(kept)
            kept, length = [], 0
    if kept:
        yield "".join(kept)
