"""What a decoder loses on tasks of lm-evaluation-harness that it wasn't trained for (HiP-LoRA App. C.2)."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from lit_spectral.errors import InputError
from lit_spectral.evaluation.benchmarks import BENCHMARKS
from lit_spectral.evaluation.harness import Tasks, evaluate
from lit_spectral.retention.base_model import base_model, original_weights
from lit_spectral.tasks import CausalLM, Task

__all__ = ["Score", "harness_names", "is_one_of", "retain", "suite_scores"]

_IN_YAML = re.compile(r"^(?:task|group):[ \t]*[\"']?([\w.-]+)", re.MULTILINE)


class Score(NamedTuple):
    """A task's score before and after, in [0, 1], higher is better."""

    task: str
    metric: str
    base: float
    adapted: float

    @property
    def lost(self) -> float:
        """Base − adapted."""
        return self.base - self.adapted


def harness_names(names: Iterable[str]) -> list[str]:
    """What the harness calls them: of this package's benchmarks the tasks, of a YAML the task in it."""
    found: list[str] = []
    for name in names:
        inside = (
            _IN_YAML.search(Path(name).read_text(encoding="utf-8"))
            if Path(name).suffix == ".yaml" and Path(name).is_file()
            else None
        )
        benchmark = BENCHMARKS[name].tasks if name in BENCHMARKS else (name,)
        found += [inside[1]] if inside else benchmark
    return found


def is_one_of(task: str, names: Iterable[str]) -> bool:
    """Whether a task of the harness is among names and patterns as in `Tasks`."""
    return any(fnmatch(task, name) for name in harness_names(names))


def retain(scores: Sequence[Score]) -> float:
    """Mean of what was lost, in percentage points: lower is better (HiP-LoRA's Retain)."""
    return 100 * statistics.fmean(score.lost for score in scores)


def suite_scores(
    task: Task,
    names: Iterable[str],
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | None = None,
    batch_size: int = 1,
) -> list[Score]:
    """The first metric that each harness task or group names, of the backbone and of the adapted model.

    Args:
        task: a decoder's.
        names: as in `Tasks`.
        limit: rows of each task; None for all.
        num_fewshot: examples in a prompt; None for the task's own number.
        include_path: as in `Tasks`.
        batch_size: rows at a time.

    Raises:
        InputError: not a decoder; as in `Tasks`; a task without a score of which more is better.
    """
    if not isinstance(task, CausalLM):
        raise InputError(f"tasks: the harness scores decoders alone, not {type(task).__name__}; give corpora or sts")
    tasks = Tasks(names, include_path)
    from lit_spectral.evaluation.model import AdaptedLM

    options = {"limit": limit, "num_fewshot": num_fewshot, "bootstrap_iters": 0}
    model = AdaptedLM(task.model, task.backbone, {}, batch_size=batch_size)
    with base_model(task, original_weights(task)):
        base = evaluate(model, tasks, **options)
    members = {member for group in base.get("group_subtasks", {}).values() for member in group}
    wholes = {name: _first_metric(base, name) for name in base["results"] if name not in members}
    after = evaluate(model, tasks, **options)
    return [
        Score(name, metric.partition(",")[0], base["results"][name][metric], after["results"][name][metric])
        for name, metric in wholes.items()
    ]


def _first_metric(results: dict[str, Any], task: str) -> str:
    better = results["higher_is_better"].get(task, {})
    for metric, value in results["results"][task].items():
        name, filtered, _ = str(metric).partition(",")
        if filtered and better.get(name) and isinstance(value, float) and 0 <= value <= 1:
            return str(metric)
    raise InputError(f"tasks: {task} has no score from 0 to 1 of which more is better; take it out of --tasks")
