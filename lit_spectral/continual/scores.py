"""What a matrix of scores says of learning one task after another.

R (stages, stages) throughout: R[i, j] is the score on stage j after training on stage i, both counted from 0;
`higher` (stages,) says whether more of a stage's score is better.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["backward_transfer", "forgetting", "forward_transfer", "mean_final"]

Scores = npt.NDArray[np.float64]


def mean_final(scores: Scores) -> float:
    """Mean over all stages of the score after the last one: AvgAcc, where scores are accuracies."""
    return float(scores[-1].mean())


def forgetting(scores: Scores, higher: Any) -> float:
    """Mean over earlier stages of the best score since its own training, before the last stage, less the final one.

    Positive where something was forgotten, also of scores of which less is better; negative where later stages helped.
    HiP-LoRA, C.4.
    """
    upward = _upward(scores, higher)
    last = len(upward) - 1
    return float(np.mean([upward[stage:last, stage].max() - upward[last, stage] for stage in range(last)]))


def backward_transfer(scores: Scores, higher: Any) -> float:
    """Mean over earlier stages of the final score less that right after its own training; below 0 where it fell.

    Lopez-Paz and Ranzato (2017), as `forward_transfer`.
    """
    upward = _upward(scores, higher)
    return float((upward[-1] - np.diagonal(upward))[:-1].mean())


def forward_transfer(scores: Scores, before: Scores, higher: Any) -> float:
    """Mean over later stages of the score just before its own training less that before any, `before` (stages,)."""
    upward, start = _upward(scores, higher), _upward(before, higher)
    return float((np.diagonal(upward, 1) - start[1:]).mean())


def _upward(scores: Scores, higher: Any) -> Scores:
    """Scores of which more is better."""
    return scores * np.where(np.asarray(higher, dtype=bool), 1.0, -1.0)
