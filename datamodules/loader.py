"""Training batches that go on where a run was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lit_spectral.datamodules.sampler import LengthGroupedSampler
from torch.utils.data import DataLoader

__all__ = ["TrainingLoader"]


class TrainingLoader(DataLoader[Any]):
    """A `DataLoader` over a `LengthGroupedSampler` that leaves out what its epoch has behind it.

    Lightning asks for an iterator before it has restored which epoch, and which batch of it, a resumed run
    is in. So nothing is drawn, and no worker starts, before the first batch is asked for.

    Args:
        rows: as of any `DataLoader`.
        behind: asked at the start of each pass, how many batches of the epoch have been trained on.
        settings: of `DataLoader`, its sampler among them.
    """

    def __init__(self, rows: Any, behind: Callable[[], int], **settings: Any) -> None:
        super().__init__(rows, **settings)
        self._behind = behind

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches that are left of the epoch."""
        if isinstance(self.sampler, LengthGroupedSampler):  # overfit_batches has another
            self.sampler.start = self._behind() * (self.batch_size or 1)
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the trainer's progress says it all. By these two Lightning knows that it can go on in an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is to be done."""
