"""`lit-spectral evaluate`: a checkpoint, or a backbone, on tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import torch

from lit_spectral.checkpoint import log_folder
from lit_spectral.checkpoint_file import read
from lit_spectral.errors import InputError, Parser, check_at_least, check_positive, nearest, refusals_of
from lit_spectral.evaluation.benchmarks import BENCHMARKS
from lit_spectral.evaluation.harness import Tasks, as_json, evaluate, figures
from lit_spectral.files import check_place, write_text
from lit_spectral.flags import add_model
from lit_spectral.terminal import VERBOSE, is_verbose

__all__ = ["run"]

# What the harness's command does besides evaluating, and this one doesn't.
_NOT_HERE = ("model", "wandb_args", "wandb_config_args", "trackio_args", "hf_hub_log_args")


def run(args: list[str]) -> Path:
    """Evaluate, print the harness's table, write the results; returns the JSON file.

    Scalars `lm_eval/<task>/<metric>` go to TensorBoard files beside it, at the checkpoint's step.

    Args:
        args: `--checkpoint SOURCE`, `--backbone FOLDER`, `--fold`, and flags of `lm_eval run`.

    Raises:
        InputError: a flag that there isn't; as in `CheckpointLM` and `Tasks`.
    """
    ours, config = _parse(args)
    if ours.checkpoint is not None and not Path(ours.checkpoint).is_dir():
        read(ours.checkpoint, summary=True)  # tasks may have to be downloaded
    file = _output(config.output_path)
    names = config.tasks.split(",") if isinstance(config.tasks, str) else config.tasks
    tasks = Tasks(names, config.include_path, config.metadata, config.confirm_run_unsafe_code)
    from lit_spectral.evaluation.model import CheckpointLM  # after what can be wrong with the tasks

    with refusals_of("evaluate: --model_args, --batch_size", "give others"):
        model = CheckpointLM(
            ours.checkpoint,
            ours.backbone,
            ours.fold,
            device=config.device,
            batch_size=config.batch_size,
            **({"max_batch_size": config.max_batch_size} if config.max_batch_size else {}),
            **config.model_args,
        )
    results = evaluate(model, tasks, **_options(config))
    samples = results.pop("samples", {})
    write_text(file, as_json(results, indent=2))
    if config.log_samples:
        lines = [as_json({"task": task, **sample}) for task, rows in samples.items() for sample in rows]
        write_text(file.with_suffix(".samples.jsonl"), "".join(f"{line}\n" for line in lines))
    _log(results, file.parent, model.step)
    _print(results, file, config.show_config)
    return file


def _parse(args: list[str]) -> tuple[argparse.Namespace, Any]:
    """Our flags, and the harness's `EvaluatorConfig` of the rest."""
    from lm_eval._cli.run import Run  # nothing public of the harness parses its flags
    from lm_eval.config.evaluate_config import EvaluatorConfig

    parser = Parser(
        prog="lit-spectral evaluate",
        description="Score a checkpoint with lm-evaluation-harness. Flags besides these are those of `lm_eval run`, "
        f"below. --tasks also takes {', '.join(BENCHMARKS)}.",
        allow_abbrev=False,
        add_help=False,
    )
    add_model(parser, required=False)
    parser.add_argument("--fold", action="store_true", help="add the changes to the weights first")
    ours, rest = parser.parse_known_args(args)
    theirs = Parser(prog="evaluate", add_help=False)
    subparsers = theirs.add_subparsers()
    Run.create(subparsers)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        print()
        if not is_verbose():
            print(_in_short(subparsers.choices["run"]))
            sys.exit()
    known = {*parser._option_string_actions, *subparsers.choices["run"]._option_string_actions}
    for flag in (arg.partition("=")[0] for arg in rest if arg.startswith("--")):
        if flag not in known:
            raise InputError(f"evaluate: there is no {flag}{nearest(flag, known)}")
    try:
        given = theirs.parse_args(["run", *rest])
    except InputError:
        raise
    except (ValueError, TypeError) as error:  # of a flag's JSON
        raise InputError(f"evaluate: {error}") from error
    for name in _NOT_HERE:
        if getattr(given, name, None):
            raise InputError(f"evaluate: --{name} is for lm_eval alone; lit-spectral writes JSON and TensorBoard files")
    # Its own default would be a GPU that there may not be.
    given.device = given.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    given.output_path = given.output_path or str(
        (log_folder(ours.checkpoint) if ours.checkpoint else Path()) / "lm_eval"
    )
    try:
        config = EvaluatorConfig.from_cli(given)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"evaluate: {str(error).splitlines()[0]}") from error
    check_positive(limit=config.limit)
    check_at_least(0, num_fewshot=config.num_fewshot)
    check_at_least(1, max_batch_size=config.max_batch_size)
    if not re.fullmatch(r"auto(:\d+)?|[1-9]\d*", str(config.batch_size)):
        raise InputError(f"evaluate: --batch_size is a number of at least 1, auto or auto:N, not {config.batch_size}")
    return ours, config


def _in_short(theirs: argparse.ArgumentParser) -> str:
    """The names of the harness's flags, in a few lines."""
    flags = [action.option_strings[-1] for action in theirs._actions if action.option_strings]
    named = ", ".join(flag for flag in flags if flag.strip("-") not in {*_NOT_HERE, "help"})
    return textwrap.fill(f"flags of lm_eval run, which --help {VERBOSE} explains: {named}", 98)


def _options(config: Any) -> dict[str, Any]:
    """The harness's settings that `simple_evaluate` takes, but for those of model and tasks."""
    import lm_eval

    elsewhere = {"model", "model_args", "tasks", "metadata", "cache_requests", "confirm_run_unsafe_code"}
    names = inspect.signature(lm_eval.simple_evaluate).parameters.keys() - elsewhere
    options = {name: getattr(config, name) for name in names if hasattr(config, name)}
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    return {**options, **config.cache_requests, **dict(zip(seeds, config.seed or [None] * 4, strict=True))}


def _output(path: str) -> Path:
    file = Path(path)
    if file.suffix != ".json":
        file /= f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    check_place(file, "evaluate: --output_path")
    return file


def _log(results: dict[str, Any], folder: Path, step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, value in figures(results).items():
            writer.add_scalar(f"lm_eval/{name}", value, step)


def _print(results: dict[str, Any], file: Path, everything: bool) -> None:
    from lm_eval.utils import make_table

    if everything:
        print(as_json(results, indent=2))
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    print(f"results: {file}")
