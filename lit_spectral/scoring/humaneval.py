"""HumanEval: functions completed from their docstrings, judged by running their tests (Chen et al., 2021)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from lit_spectral.bars import track
from lit_spectral.datamodules.columns import as_text, short
from lit_spectral.datamodules.files import check_columns, read_split
from lit_spectral.datamodules.sources import name_row, source_of
from lit_spectral.errors import InputError, check_at_least
from lit_spectral.files import check_place, write_text
from lit_spectral.scoring.code_execution import Outcome, available, pass_at_k, run

__all__ = ["STOP", "Problem", "Scores", "check_isolation", "cut", "evaluate", "program", "read_problems", "score"]

HUB_ID = "openai/openai_humaneval"
# Seconds; in less no interpreter starts, so that every program would fail.
SHORTEST = 0.1
LONGEST = 86_400.0  # a day; the system's clocks count no more than some weeks
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # the paper's, where a function body has ended
USUAL_K = (1, 5, 10, 100)  # the paper's, and HiP-LoRA's 5


class Problem(NamedTuple):
    """One problem: its columns in the data set.

    Attributes:
        prompt: imports, signature and docstring; what a model is to go on from.
        entry_point: name of the function.
        canonical_solution: its body as the authors wrote it.
        test: source of `check(candidate)`.
    """

    prompt: str
    entry_point: str
    canonical_solution: str
    test: str


class Scores(NamedTuple):
    """What came of the completions.

    Attributes:
        pass_at_k: from k to the mean over problems, in [0, 1].
        outcomes: from task id to one outcome a completion, in their order.
    """

    pass_at_k: dict[int, float]
    outcomes: dict[str, list[Outcome]]


def read_problems(path: str = HUB_ID) -> dict[str, Problem]:
    """From task id to problem, in the data set's order.

    Args:
        path: hub id, or a folder with `test.jsonl`, `.parquet` or `.csv`.

    Raises:
        InputError: as in `read_split`; a missing column, a task id that comes twice.
    """
    rows = read_split(path, "test")
    columns = ("task_id", *Problem._fields)
    source = source_of(path, "test")
    check_columns(rows, columns, source.name)
    problems: dict[str, Problem] = {}
    for number, row in enumerate(as_text(rows, columns, source)):
        if row["task_id"] in problems:
            raise InputError(
                f"{name_row(source, number)}: task_id {short(row['task_id'])} was there before; "
                "give each problem its own"
            )
        problems[row["task_id"]] = Problem(*(row[name] for name in Problem._fields))
    return problems


def check_isolation() -> None:
    """InputError where programs can't be shut in."""
    reason = available()
    if reason is not None:
        raise InputError(f"humaneval: programs that a model wrote are run in isolation or not at all: {reason}")


def cut(completion: str) -> str:
    """The completion up to the first of `STOP`, where another top-level statement begins."""
    ends = [found for stop in STOP if (found := completion.find(stop)) >= 0]
    return completion[: min(ends, default=None)]


def program(problem: Problem, completion: str) -> str:
    """Source that ends without an error if the completion, cut, passes the problem's tests."""
    return f"{problem.prompt}{cut(completion)}\n{problem.test}\ncheck({problem.entry_point})\n"


def score(
    problems: Mapping[str, Problem],
    completions: Mapping[str, Sequence[str]],
    k: Sequence[int] | None = None,
    timeout: float = 3.0,
    workers: int | None = None,
    allow_code_execution: bool = False,
) -> Scores:
    """Run every completion against its problem's tests, each in isolation; a progress bar goes to stderr.

    Args:
        problems: as of `read_problems`.
        completions: from task id to at least one completion of the prompt; for every problem, since
            the mean over some of them is not the benchmark's.
        k: None for those of 1, 5, 10 and 100 that the number of completions allows.
        timeout: seconds for each program.
        workers: programs run at a time; None for the processor's cores that this process may use.
        allow_code_execution: leave to run what a model wrote.

    Raises:
        InputError: no leave given, isolation not to be had, completions missing or of unknown
            problems, a k above the number of completions of a problem.
    """
    unknown = [task for task in completions if task not in problems]
    missing = [task for task in problems if not completions.get(task)]
    if unknown:
        raise InputError(f"humaneval: {_unknown(unknown[0], problems)}")
    if missing:
        raise InputError(
            f"humaneval: no completion of {len(missing)} of {len(problems)} problems, such as {short(missing[0])}; "
            "add them, since the mean is over all"
        )
    fewest = min(len(completions[task]) for task in problems)
    wanted = [each for each in USUAL_K if each <= fewest] if k is None else list(k)
    if any(not 1 <= each <= fewest for each in wanted):
        raise InputError(f"humaneval: k is {wanted}, but a problem has {fewest} completions; give k of 1 to {fewest}")
    jobs = [(task, number) for task in problems for number in range(len(completions[task]))]
    if not allow_code_execution:
        raise InputError(
            f"humaneval: this runs {len(jobs)} programs that a model wrote, each shut in (docs/code_execution.md); "
            "allow it with --allow_code_execution"
        )
    check_isolation()

    def judge(job: tuple[str, int]) -> Outcome:
        task, number = job
        return run(program(problems[task], completions[task][number]), timeout)

    done: dict[tuple[str, int], Outcome] = {}
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
    try:
        futures = {pool.submit(judge, job): job for job in jobs}
        console = Console(stderr=True)
        for future in track(as_completed(futures), "Running programs", total=len(jobs), console=console):
            done[futures[future]] = future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    outcomes = {task: [done[task, number] for number in range(len(completions[task]))] for task in problems}
    n = torch.tensor([len(found) for found in outcomes.values()])
    c = torch.tensor([sum(each.status == "passed" for each in found) for found in outcomes.values()])
    return Scores({each: float(pass_at_k(n, c, each).mean()) for each in wanted}, outcomes)


def evaluate(
    samples: str,
    path: str = HUB_ID,
    results: str | None = None,
    timeout: float = 3.0,
    allow_code_execution: bool = False,
) -> dict[int, float]:
    """Score a file of samples, and write what became of each, line by line in the same order.

    Args:
        samples: JSON lines with `task_id` and `completion`; several of a problem are its draws.
        path: as in `read_problems`.
        results: JSON lines with `task_id`, `completion`, `passed`, `status`, `error` and `seconds`;
            None for the samples' name with `_results` before its suffix. Overwritten.
        timeout: as in `score`; from 0.1 to 86,400, a day.
        allow_code_execution: as in `score`.

    Returns:
        From k to pass@k.

    Raises:
        InputError: as in `score`; a line that is no such sample, files that can't be read or written.
    """
    check_at_least(SHORTEST, timeout=timeout)
    if timeout > LONGEST:
        raise InputError(f"timeout must be at most {LONGEST:.0f} seconds, a day, not {timeout}")
    rows = _read_samples(samples)
    completions: dict[str, list[str]] = {}
    for _, row in rows:
        completions.setdefault(row["task_id"], []).append(row["completion"])
    given = Path(samples).expanduser()
    target = Path(results).expanduser() if results else given.with_name(f"{given.stem}_results.jsonl")
    check_place(target, "humaneval: --results")
    problems = read_problems(path)
    for place, row in rows:
        if row["task_id"] not in problems:
            raise InputError(f"{place}: {_unknown(row['task_id'], problems)}")
    scores = score(problems, completions, timeout=timeout, allow_code_execution=allow_code_execution)
    draws = {task: iter(outcomes) for task, outcomes in scores.outcomes.items()}
    lines = []
    for _, row in rows:
        outcome = next(draws[row["task_id"]])
        lines.append(json.dumps({**row, "passed": outcome.status == "passed", **outcome._asdict()}))
    write_text(target, "".join(f"{line}\n" for line in lines))
    return scores.pass_at_k


def _unknown(task: str, problems: Mapping[str, Problem]) -> str:
    known = short(next(iter(problems), ""))
    return f"there is no problem {short(task)}; the problems' task_id is like {known}, write it so"


def _read_samples(path: str) -> list[tuple[str, dict[str, Any]]]:
    """The samples, each with its place as errors name it."""
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # a text may hold other line ends
    except (OSError, ValueError) as error:  # no UTF-8, or a name that no file can have
        raise InputError(f"humaneval: {path} can't be read: {error}; give a file of JSON lines") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place, wrong = f"humaneval: {path}, line {number}", None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also a number of some thousand digits, or lists in lists
            wrong = f"is not JSON: {str(error).split(';')[0]}"
        else:
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("task_id", "completion")):
                wrong = 'is not {"task_id": TEXT, "completion": TEXT}'
        if wrong is not None:
            raise InputError(f"{place} {wrong}; mend the line or leave it out")
        rows.append((place, row))
    if not rows:
        raise InputError(f"humaneval: {path} holds no samples; give one a line")
    return rows
