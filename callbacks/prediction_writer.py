"""What `predict` says of each row, in a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_spectral.errors import InputError
from lit_spectral.files import write_text
from lit_spectral.run_folder import has_own_folder, own_folder

__all__ = ["PredictionWriter", "check_has_place"]

log = logging.getLogger(__name__)


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.jsonl` into the run's log folder when `predict` has come to its end.

    A line a row, in the order of the rows, of all processes: `row`, its number in the set, and what
    the task says of it. With several sets each has its own `predictions_SET.jsonl`. What
    `trainer.predict` returns stays what `predict_step` gave. Without a folder of the run's own
    nothing is written; InputError if nothing is returned either.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._lines: dict[str, dict[int, str]] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start with no row; refuse to lose them."""
        super().setup(trainer, pl_module, stage)
        self._lines = {}
        if stage == "predict" and not trainer.predict_loop.return_predictions:
            check_has_place(trainer)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep what the task says of a batch's rows."""
        said = pl_module.predicted
        if said and not batch_indices:
            raise InputError(
                "predict: the data's loader doesn't say which rows a batch holds; give a DataLoader of rows"
            )
        self.keep(pl_module.evaluation_sets()[dataloader_idx], zip(batch_indices or (), said, strict=bool(said)))

    def keep(self, name: str, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Keep pairs of a row's number in a set and what is said of it; InputError for what is not a number."""
        kept = self._lines.setdefault(name, {})
        kept |= {int(row): _line(name, {"row": int(row), **said}) for row, said in rows}

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what was kept, and say where."""
        folder = own_folder(trainer)
        parts: list[Any] = [self._lines]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._lines)
        self._lines = {}
        names = list(dict.fromkeys(name for part in parts for name in part))
        if folder is None or not trainer.is_global_zero:
            return
        if not names:
            log.warning("predict: %s says nothing of its rows, and nothing is written", type(pl_module).__name__)
        for name in names:
            lines = {row: line for part in parts for row, line in part.get(name, {}).items()}
            file = folder / ("predictions.jsonl" if len(names) == 1 else f"predictions_{name}.jsonl")
            write_text(file, "".join(f"{lines[row]}\n" for row in sorted(lines)))
            print(f"predictions of {len(lines)} rows: {file}")


def check_has_place(trainer: pl.Trainer) -> None:
    """InputError where a run has no folder to keep predictions in."""
    if not has_own_folder(trainer) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise InputError(
            "predict: without a folder of the run's own, the predictions would be lost; "
            "give --trainer.logger CSVLogger --trainer.logger.save_dir FOLDER"
        )


def _line(name: str, said: dict[str, Any]) -> str:
    try:
        return json.dumps(said, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InputError(
            f"predict: {name}, row {said['row']}: its scores are not finite; the checkpoint has diverged, or "
            "--trainer.precision is too coarse for it"
        ) from None
