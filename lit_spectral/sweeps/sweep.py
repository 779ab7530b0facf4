"""The loop: each value's update is put on the model that there is, and measured; no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lit_spectral.errors import InputError
from lit_spectral.methods import Given
from lit_spectral.spectra.partial_svd import partial_svd
from lit_spectral.sweeps.values import Sweep
from lit_spectral.tasks import Task
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.mending import mend
from lit_spectral.updates.sizes import spectral_norms
from lit_spectral.updates.update import Update

__all__ = ["Row", "sweep"]


class Row(NamedTuple):
    """A repair and a value of it, both None for the adapter as it is; the largest ‖ΔW‖₂; and all that was measured."""

    repair: str | None
    value: Any
    spectral_norm: float
    measured: dict[str, float]

    @property
    def label(self) -> str:
        """What was done."""
        return "as it is" if self.repair is None else f"{self.repair} {self.text}"

    @property
    def text(self) -> str:
        """The value."""
        return f"{self.value:g}" if isinstance(self.value, float) else str(self.value)


def sweep(task: Task, sweeps: Sequence[Sweep], measure: Callable[[], dict[str, float]]) -> Iterator[Row]:
    """Measure a task with its adapter as it is, then after each repair alone, by every value; a row as it is had.

    Args:
        task: of the method `Given`, configured or not; afterwards its adapter is what it was.
        sweeps: as `sweeps_of` gives them.
        measure: of the task as it is now.

    Raises:
        InputError: an adapter without ΔW, or a value that it or its backbone can't take, before anything is measured.
    """
    method = task.method
    assert isinstance(method, Given)
    update, backbone = method.read(task.backbone), Backbone(task.backbone)
    points = [(each.repair, value) for each in sweeps for value in each.values]
    _check(update, points, backbone, method.source)
    try:
        method.put(update)
        as_it_is = Row(None, None, _spectral_norm(update, backbone), measure())
        yield as_it_is
        for repair, value in points:
            if repair == "scale" and value == 1:
                yield as_it_is._replace(repair=repair, value=value)
                continue
            mended = mend(update, repair, value, backbone)
            method.put(mended)
            yield Row(repair, value, _spectral_norm(mended, backbone), measure())
    finally:
        method.put(update)


def _check(update: Update, points: Sequence[tuple[str, Any]], backbone: Backbone, source: str) -> None:
    """Repair the smallest map by every value, which is soon done, and is where one may be too large."""
    if not update.changes:
        raise InputError(f"{source}: all of it was trained whole, and no repair changes that; give one that has a ΔW")
    path = min(update.changes, key=lambda each: min(update.changes[each].shape))
    smallest = replace(update, changes={path: update.changes[path]})
    for repair, value in points:
        mend(smallest, repair, value, backbone)


def _spectral_norm(update: Update, backbone: Backbone) -> float:
    pairs = {path: delta.factors for path, delta in update.changes.items() if delta.is_thin and delta.factors}
    norms = [*spectral_norms(pairs).values()]
    for path, delta in update.changes.items():
        if path not in pairs:
            dense = delta.dense(backbone.behind(path, delta))
            norms.append(float(partial_svd(dense, "top", 1).triplets.sigma[0]) if dense.any() else 0.0)
    return max(norms)
