"""Finding and loading tasks of lm-evaluation-harness, running them, and reading its results."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_spectral.errors import InputError, reason_of, refusals_of
from lit_spectral.evaluation.benchmarks import BENCHMARKS
from lit_spectral.evaluation.provenance import described

__all__ = ["Tasks", "as_json", "evaluate", "figures"]

log = logging.getLogger(__name__)
OURS = Path(__file__).parent / "tasks"


class Tasks:
    """Tasks by their names, data read, and the harness's manager that knows them.

    The harness takes up to half a minute to read the list of its own tasks; that is done only when
    a name is neither one of this package's nor of the folder `include_path`.

    Args:
        names: of harness tasks, groups and tags, patterns such as `mmlu_*`, YAML files, keys of `BENCHMARKS`.
        include_path: a folder with YAMLs of tasks.
        metadata: handed to tasks that ask for it; those of this package take the folders of their data.
        confirm_run_unsafe_code: whether tasks may run what the model has written.

    Raises:
        InputError: no such folder, an unknown name, a task given twice, a task whose data or packages
            can't be had, or one that runs the model's code, unconfirmed.
    """

    def __init__(
        self,
        names: Iterable[str],
        include_path: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        confirm_run_unsafe_code: bool = False,
    ) -> None:
        from lm_eval.tasks import TaskManager

        self.names = list(names)
        names = [task for name in self.names for task in (BENCHMARKS[name].tasks if name in BENCHMARKS else (name,))]
        if not names:
            raise InputError(f"tasks: none given; this package's benchmarks are {', '.join(BENCHMARKS)}")
        if include_path is not None and not Path(include_path).is_dir():
            raise InputError(f"include_path: there is no folder {include_path}; give one with YAMLs of tasks")
        folders = [str(OURS), *([include_path] if include_path is not None else [])]
        options = {"include_path": folders, "metadata": dict(metadata or {})}
        self.manager = TaskManager(include_defaults=False, **options)
        if not all(self._is_local(name) for name in names):
            log.info("reading the harness's list of tasks")
            self.manager = TaskManager(**options)
        self.loaded = [task for name in names for match in self._matches(name) for task in self._load(match)]
        self._check(confirm_run_unsafe_code)

    def _is_local(self, name: str) -> bool:
        if Path(name).suffix == ".yaml":
            return True
        entries = [self.manager.task_index[match] for match in self.manager.match_tasks([name])]
        # A local group may be of the harness's tasks.
        members = [task for entry in entries if entry.kind.name == "GROUP" for task in (entry.cfg or {})["task"]]
        return bool(entries) and all(isinstance(task, str) and self._is_local(task) for task in members)

    def _matches(self, name: str) -> list[str]:
        if name.endswith(".yaml") and Path(name).is_file():
            return [str(Path(name).resolve())]
        found: list[str] = self.manager.match_tasks([name])
        if not found:
            near = difflib.get_close_matches(name, [*BENCHMARKS, *self.manager.all_tasks], n=5, cutoff=0.5)
            remedy = f"near it are {', '.join(near)}" if near else "`lm_eval ls tasks` lists those of the harness"
            raise InputError(f"tasks: {name} unknown; {remedy}; --include_path adds a folder of your own")
        return found

    def _load(self, name: str) -> list[Any]:
        import datasets

        try:
            with refusals_of(f"tasks: {name} can't be loaded", "is its YAML as the harness's guide to tasks has it?"):
                found = self.manager.load([name])
        except InputError as error:
            reason, cause = reason_of(error.__cause__ or error), error.__cause__
            if isinstance(cause, ImportError):
                raise InputError(f"tasks: {name} needs a package that is not installed: {reason}") from error
            if isinstance(cause, (OSError, datasets.exceptions.DatasetsError)):
                raise InputError(
                    f"tasks: the data of {name} can't be had ({reason}); go online once, set HF_HOME to where it "
                    "is cached, or write a YAML over local files and give its folder with --include_path"
                ) from error
            raise
        groups = found.get("groups", {})
        return [groups[name]] if name in groups else list(found["tasks"].values())

    def _check(self, confirmed: bool) -> None:
        try:
            tasks = self.manager.load(self.loaded)["tasks"]
        except ValueError as error:  # one is in two of the groups that were named
            raise InputError(f"tasks: {reason_of(error)}") from error
        unsafe = [name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]
        if unsafe and not confirmed:
            raise InputError(
                f"tasks: {unsafe[0]} runs the code that the model writes; give --confirm_run_unsafe_code "
                "where that can do no harm"
            )


def evaluate(model: Any, tasks: Tasks, **options: Any) -> dict[str, Any]:
    """`lm_eval.simple_evaluate` on loaded tasks; empty on a machine's processes other than its first.

    It seeds Python, NumPy and torch, and leaves the model in eval mode.

    Args:
        model: an `AdaptedLM`, or any model class of the harness.
        tasks: what to evaluate on.
        options: `num_fewshot`, `limit`, `log_samples`, … as `simple_evaluate` takes them; those of
            the model (`batch_size`, `device`) are written down, and the model has its own.
    """
    import lm_eval
    from lm_eval import evaluator

    # The harness's own lets git complain on the console where the folder is no repository.
    evaluator.get_git_commit_hash = described
    with refusals_of(f"tasks: {', '.join(tasks.names)}", "are the task's YAML and the flags right for each other?"):
        results = lm_eval.simple_evaluate(
            model,
            tasks=tasks.loaded,
            task_manager=tasks.manager,
            confirm_run_unsafe_code=True,  # or `Tasks` would have refused
            **options,
        )
    return dict(results or {})


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """`<task>/<metric>` to its value, for tasks and groups, without standard errors.

    A metric that a filter's answers were scored by is named `<metric>_<filter>`.
    """
    found = {}
    for task, metrics in results["results"].items():
        for name, value in metrics.items():
            metric, comma, used = name.partition(",")
            if comma and isinstance(value, (int, float)) and not metric.endswith("_stderr"):
                found[f"{task}/{metric}" + (f"_{used}" if used != "none" else "")] = float(value)
    return found


def as_json(results: Mapping[str, Any], indent: int | None = None) -> str:
    """Results as JSON; what has no form in it (functions, dtypes) as text."""
    from lm_eval.utils import handle_non_serializable

    return json.dumps(results, indent=indent, default=handle_non_serializable, ensure_ascii=False)
