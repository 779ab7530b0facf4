"""The command line: LightningCLI with this package's tasks, methods, data modules and callbacks."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import warnings
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lit_spectral.datamodules  # noqa: F401  (short class names work for what is imported)
from lit_spectral import __version__
from lit_spectral.callbacks import StepCheckpoint
from lit_spectral.callbacks.prediction_writer import check_has_place
from lit_spectral.checkpoint_file import read
from lit_spectral.errors import InputError, check_at_least, mistake, nearest, of_settings
from lit_spectral.files import write_text
from lit_spectral.methods import Method
from lit_spectral.parsing import ConfigFile, SettingsParser
from lit_spectral.run_folder import RunFolder, own_folder, set_aside, verb_of
from lit_spectral.strategies import refuse_by_name
from lit_spectral.tasks import Task
from lit_spectral.tasks.meaning import check_limits
from lit_spectral.terminal import print_anything

__all__ = ["SpectralCLI", "main", "run"]

DESCRIPTION = "Spectral parameter-efficient fine-tuning of language models."
EPILOG = (
    "And `quickstart [CONFIG]`: LoRA beside FCLoRA on text that ships with Python, no download; "
    "`humaneval SAMPLES.jsonl`: pass@k of completions (`humaneval --help`). "
    "`evaluate --checkpoint FILE --tasks NAMES`: a decoder on tasks of lm-evaluation-harness. "
    "`retain --checkpoint FILE --corpora TEXTS`: what a model has kept of its backbone; "
    "`compare --config FILE --methods NAMES --seeds N N`: both, of several methods, as a table and a page."
)

# Methods are dataclasses; jsonargparse takes subclasses of those only where it is told to.
set_parsing_settings(subclasses_enabled=[Method])


class _DiscardedSettings(logging.Filter):
    """Lets pass, once each, the parser's notes on settings of a method that a flag has replaced."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show the record."""
        message = record.getMessage()
        new = "discarding init_args" in message and message not in self._seen
        self._seen.add(message)
        return new


def _parser_log() -> logging.Logger:
    # jsonargparse tells of dropped settings at debug level only, among much else.
    logger = logging.getLogger("lit_spectral.cli.parser")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.addFilter(_DiscardedSettings())
    logger.handlers = [handler]
    return logger


class _SaveConfig(SaveConfigCallback):
    """Keeps a run's settings beside its logs; without logs there is no folder of the run's own to write to."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write them, once."""
        self._folder = own_folder(trainer)  # asked on every process
        if self._folder is not None:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write them beside those of the run that goes on, or whose checkpoint is evaluated."""
        assert self._folder is not None
        file = self._folder / "config.yaml"
        verb = verb_of(trainer)
        if verb != "fit" and file.exists():
            file = file.with_name(f"config_{verb}.yaml")
        set_aside(file)
        write_text(file, self.parser.dump(self.config, skip_none=False))


def _show_progress() -> None:
    """Let this package's notes, such as what a decomposition cost, be seen; those of one process."""
    logger = logging.getLogger("lit_spectral")
    if not logger.handlers and os.environ.get("LOCAL_RANK", "0") == "0":
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)


class SpectralCLI(LightningCLI):
    """LightningCLI over `Task` and any data module; optimisers are the task's own business."""

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        shared = {"logger": _parser_log()}
        about = {"prog": "lit-spectral", "description": DESCRIPTION, "epilog": EPILOG}
        known, given = self.subcommands(), sys.argv[1:] if args is None else args
        verb = next((arg for arg in given if arg in known or arg in {"-h", "--help"}), None)
        if run and verb in known:
            # Parsers of the others would take most of the start.
            self.subcommands = lambda: {verb: known[verb]}  # type: ignore[method-assign]
        warnings.filterwarnings("ignore", ".*provide both args and command line arguments.*")
        super().__init__(
            Task,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={**shared, **about, **dict.fromkeys(self.subcommands(), shared)} if run else shared,
            args=args,
            run=run,
        )

    def _parse_ckpt_path(self) -> None:
        """Refuse a checkpoint that can't be read before anything is done; Lightning's takes settings from it here.

        They would replace the flags that were given, and name classes to import.
        """
        subcommand = self.config.get("subcommand")
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        if path is None or path in {"best", "last", "hpc"}:
            return
        if not os.path.isdir(path):  # a sharded one is a folder
            read(path, summary=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What is set at the top of a config, beside `seed_everything`."""
        about = "keep last.ckpt every so many optimizer steps, to go on from (a callback: StepCheckpoint)"
        parser.add_argument("--save_every_n_steps", type=int | None, default=None, help=about)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """As LightningCLI's, with our `--config`."""
        parser = SettingsParser(dump_header=[f"lit-spectral=={__version__}"], **kwargs)
        about = "YAML of settings: a file of yours, or a shipped configs/NAME.yaml. May be repeated."
        parser.add_argument("-c", "--config", action=ConfigFile, help=about)
        return parser

    def instantiate_classes(self) -> None:
        """As LightningCLI's; what Lightning or torch refuse of the settings is a mistake in them."""
        strategy = self._get(self.config, "trainer.strategy")
        refuse_by_name(str(getattr(strategy, "class_path", strategy)))
        try:
            super().instantiate_classes()
        except Exception as error:
            if mistake(error) is None and (refusal := of_settings(error)):
                raise InputError(f"settings: {refusal}") from error
            raise

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool):
            check_at_least(0, seed_everything=seed)
            if seed >= 2**32:  # what numpy takes
                raise InputError(f"seed_everything must be below 2^32, not {seed}")
        super()._set_seed()

    def after_instantiate_classes(self) -> None:
        """Refuse what would come to nothing and claim the run's folders, before there are other processes."""
        if self.subcommand is None:
            return
        every = self.config[self.subcommand].get("save_every_n_steps")
        if every is not None and self.subcommand == "fit":
            self.trainer.callbacks.append(StepCheckpoint(every))  # type: ignore[attr-defined]
        _check_callbacks(self.trainer)
        check_limits(self.trainer, self.subcommand)
        if self.subcommand == "predict":
            check_has_place(self.trainer)
        folders = RunFolder()
        self.trainer.callbacks.append(folders)  # type: ignore[attr-defined]
        folders.claim(self.trainer, self.subcommand, self.config[self.subcommand].get("ckpt_path"), known=True)


def _check_callbacks(trainer: Trainer) -> None:
    """InputError for a base class, which the parser makes of a mapping that stands where a list should."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if type(callback) in {Callback, Checkpoint, BasePredictionWriter}:
            raise InputError(
                f"trainer.callbacks: {type(callback).__name__} alone does nothing; give a list of `class_path: NAME`"
            )


def run(args: list[str] | None = None) -> SpectralCLI:
    """Run a subcommand (`fit`, `validate`, `test`, `predict`) and return the finished command line.

    Args:
        args: as on the command line; None for `sys.argv`.
    """
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    for known in ("Checkpoint directory", "Experiment logs directory"):  # RunFolder sees to it
        warnings.filterwarnings("ignore", f"{known} .* exists and is not empty")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _show_progress()
    return SpectralCLI(_values_as_given(sys.argv[1:] if args is None else args))


def _build(args: list[str]) -> SpectralCLI:
    """The command line of `fit` with these flags, nothing run."""
    return SpectralCLI(_values_as_given(args), run=False)


def _values_as_given(args: list[str]) -> list[str]:
    """Values that the parser would misread as mappings of them, `--data.init_args {"prompt": TEXT}` say.

    It takes {column} in a template for YAML.
    """
    written, rest = [], iter(args)
    for arg in rest:
        flag, joined, text = arg.partition("=")
        owner, _, name = flag.rpartition(".")
        if flag in {"--data.prompt", "--data.input", "--data.answer"}:
            text = text if joined else next(rest, "--")
            if not joined and text.startswith("--"):
                raise InputError(f"{flag}: no text is given; write {flag}='TEXT'")
            arg = f"{owner}.init_args={json.dumps({name: None if text == 'null' else text})}"
        written.append(arg)
    return written


# <linux/prctl.h>: the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1


def _quickstart(args: list[str]) -> None:
    from lit_spectral import quickstart

    quickstart.run(args, _build)


def _humaneval(args: list[str]) -> None:
    from lit_spectral.scoring import humaneval

    humaneval.main(args)


def _evaluate(args: list[str]) -> None:
    from lit_spectral.evaluation import command

    _show_progress()
    command.run(args)


def _compare(args: list[str]) -> None:
    from lit_spectral.comparison import command

    command.run(args, _build)


def _retain(args: list[str]) -> None:
    from lit_spectral.retention import command

    _show_progress()
    command.run(args)


# Those that are not LightningCLI's; each imports its own, since the harness alone takes seconds.
VERBS = {
    "quickstart": _quickstart,
    "humaneval": _humaneval,
    "evaluate": _evaluate,
    "compare": _compare,
    "retain": _retain,
}


def _end_with_starter() -> None:
    """Have the kernel end this process of several with the one that started it, for which it would wait for long."""
    if int(os.environ.get("LOCAL_RANK", "0")) and sys.platform == "linux":
        starter = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != starter:  # it has just gone
            sys.exit(128 + signal.SIGTERM)


def _check_verb(args: list[str]) -> None:
    verbs = [*LightningCLI.subcommands(), *VERBS]
    if not args:
        raise InputError(f"no subcommand is given; there are {', '.join(verbs)}, each with --help")
    if not args[0].startswith("-") and args[0] not in verbs:
        meant = {"train": "fit", "eval": "evaluate", "sweep": "compare", "generate": "predict"}.get(args[0])
        raise InputError(
            f"there is no subcommand {args[0]}" + (f"; {meant} is it" if meant else nearest(args[0], verbs))
        )


def main(args: list[str] | None = None) -> None:
    """Run the command line; a mistake in what was given is one line on stderr and exit status 2."""
    args = sys.argv[1:] if args is None else args
    print_anything()
    _end_with_starter()
    try:
        _check_verb(args)
        VERBS.get(args[0], lambda _: run(args))(args[1:])
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning stops with 1 and 0; whoever started this is to know what it was.
        if isinstance(stop, SIGTERMException):
            sys.exit(128 + signal.SIGTERM)
        if isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)
        raise
    except Exception as error:
        line = mistake(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
