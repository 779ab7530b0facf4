"""What all data modules of tokenised text share."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lit_spectral.datamodules.loader import TrainingLoader
from lit_spectral.datamodules.sampler import LengthGroupedSampler
from torch.utils.data import DataLoader

from lit_spectral import backbones
from lit_spectral.checkpoint_file import read
from lit_spectral.errors import InputError, check_at_least

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TextDataModule"]


class TextDataModule(pl.LightningDataModule):
    """Rows of token ids, batched by length and padded to the longest of a batch.

    Attributes:
        padding_side: where; the task finds out what its backbone can bear, whatever side the tokenizer says.

    Args:
        batch_size: rows of a training batch, on each process.
        eval_batch_size: rows of an evaluation batch; None for four times `batch_size`.
        max_length: tokens after which a row is cut.
        tokenizer: a hub id or folder; None for that of the model's backbone.
        num_workers: processes that prepare batches; 0 prepares them in the training process,
            which is enough for short, tokenised rows; at most 512.
        seed: of the order of training rows, from 0 and below 2**32; order also depends on the epoch.
    """

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        max_length: int = 256,
        tokenizer: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if None in (batch_size, max_length, num_workers, seed):
            raise InputError("data: batch_size, max_length, num_workers and seed are whole numbers, not null")
        check_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, max_length=max_length)
        check_at_least(0, num_workers=num_workers, seed=seed)
        if seed >= 2**32:
            raise InputError(f"seed must be below 2**32, above which generators take none, not {seed}")
        if num_workers > 512:  # so many processes leave none for the rest of the machine
            raise InputError(f"num_workers must be at most 512, not {num_workers}; a few for each device are enough")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 4 * batch_size
        self.max_length = max_length
        self.tokenizer_name = tokenizer
        self.num_workers = num_workers
        self.seed = seed
        self.padding_side = "right"
        self.splits: dict[str, Any] = {}
        self._tokenizer: Any = None
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # that workers are in
        self._source: str | None = None  # of the tokenizer, and of the tokens in the splits

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | os.PathLike[str], *, weights_only: bool | None = None, **given: Any
    ) -> Self:
        """A data module with these arguments, in the state that a checkpoint holds, if it holds any of it.

        Raises:
            InputError: as in `lit_spectral.checkpoint_file.read`.
        """
        content = read(checkpoint_path, weights_only)
        module = cls(**given)
        if cls.__qualname__ in content:
            module.load_state_dict(content[cls.__qualname__])
        return module

    @property
    def evaluation_sets(self) -> list[str]:
        """Names under which the validation sets are logged."""
        return ["val"]

    @abstractmethod
    def tokenised(self, name: str) -> Any:
        """The rows of `train`, `test` or an evaluation set: a `datasets.Dataset` of token ids, cached on disk."""

    def prepare_data(self) -> None:
        """Tokenise, on one process; the others read the cache on disk."""
        self.setup(self._stage())

    def setup(self, stage: str) -> None:
        """Read the splits that this stage needs; all anew where the model now is one of another tokenizer."""
        self._find_source()
        for name in self._names(stage):
            if name not in self.splits:
                self.splits[name] = self.tokenised(name)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled by seed and epoch; a resumed run goes on where it was, inside an epoch too."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader an evaluation set."""
        return [self._loader(name, self.eval_batch_size, shuffle=False) for name in self.evaluation_sets]

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The test split."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def predict_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The test split, in the order of its rows."""
        rows, size = self.splits["test"], self.eval_batch_size
        return DataLoader(rows, batch_size=size, collate_fn=self.collate, num_workers=self.num_workers)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded once."""
        if self._tokenizer is None:
            self._find_source()
            if self._source is None:
                raise InputError("data.tokenizer is not given, and there is no model to take it from")
            setting = "backbone" if self.tokenizer_name is None else "data.tokenizer"
            # A tokenizer of another name is of another revision.
            task = self.trainer.lightning_module if self.trainer is not None and self.tokenizer_name is None else None
            loading = getattr(task, "loading", backbones.AS_IT_COMES)
            tokenizer = backbones.load_tokenizer(backbones.fetch(self._source, setting), setting, loading)
            backbones.check_reads_text(tokenizer, self._source, setting)
            self._tokenizer = tokenizer
        return self._tokenizer

    def _find_source(self) -> None:
        name = self.tokenizer_name
        if name is None and self.trainer is not None:
            name = getattr(self.trainer.lightning_module, "backbone", None)
        if name is not None and name != self._source:
            if self._source is not None:
                self.splits, self._tokenizer = {}, None
            self._source = name

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """Rows padded to the longest of them, as tensors."""
        return self.tokenizer.pad(rows, padding_side=self.padding_side, return_tensors="pt")

    def collate_training(self, rows: list[dict[str, Any]]) -> Any:
        """Those of a training batch: what is drawn for them goes by seed, epoch and row, so that a run can go on."""
        return self.collate(rows)

    @property
    def _longest(self) -> int:
        return min(self.max_length, int(self.tokenizer.model_max_length))

    def _room(self, pair: bool = False) -> int:
        """Tokens of a row at most, if beside the tokenizer's special ones there is any; it would not cut rows else."""
        special = self.tokenizer.num_special_tokens_to_add(pair=pair)
        if self._longest <= special:
            raise InputError(
                f"data.max_length: {self._longest} leaves no room beside the tokenizer's {special} special tokens; "
                "give more"
            )
        return self._longest

    @property
    def _opening(self) -> list[int]:
        """BOS where the tokenizer puts one before a text, else nothing."""
        ids: list[int] = self.tokenizer("")["input_ids"]
        return ids[:1] if ids and ids[0] == self.tokenizer.bos_token_id else []

    def longest_row(self) -> int:
        """Tokens of the longest row of what was set up."""
        return max((max(self._lengths(rows), default=0) for rows in self.splits.values()), default=0)

    def _stage(self) -> str:
        return self.trainer.state.fn.value if self.trainer and self.trainer.state.fn else "fit"

    def _names(self, stage: str) -> list[str]:
        return {"fit": ["train", *self.evaluation_sets], "validate": self.evaluation_sets}.get(stage, ["test"])

    def _lengths(self, rows: Any) -> list[int]:
        """Tokens of each row."""
        if hasattr(rows, "lengths"):  # packed ones know theirs
            return list(rows.lengths)
        import pyarrow.compute as pc

        lengths: list[int] = pc.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()
        return lengths

    def _loader(self, name: str, batch_size: int, shuffle: bool) -> DataLoader[Any]:
        rows = self.splits[name]
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if len(rows) < world:  # one without a batch would wait for the others for ever
            raise InputError(f"data: {name} has {len(rows)} rows for {world} processes; give more, or fewer devices")
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "sampler": LengthGroupedSampler(self._lengths(rows), batch_size, shuffle, world, rank, self.seed),
            "num_workers": self.num_workers,
            # Its own, so that starting an epoch does not draw from the generator that dropout uses.
            "generator": torch.Generator().manual_seed(self.seed),
            "persistent_workers": self.num_workers > 0,
            "pin_memory": bool(self.trainer and self.trainer.strategy.root_device.type == "cuda"),
        }
        if shuffle:
            return TrainingLoader(rows, self._begin_epoch, collate_fn=self.collate_training, **options)
        return DataLoader(rows, collate_fn=self.collate, **options)

    def _begin_epoch(self) -> int:
        """Note which epoch begins, for workers too; returns how many of its batches have been trained on."""
        if self.trainer is None or not self.trainer.training:
            return 0
        self._epoch.fill_(self.trainer.current_epoch)
        return self.trainer.fit_loop.batch_idx + 1
