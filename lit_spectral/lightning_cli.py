"""LightningCLI with this package's tasks, methods, data modules and callbacks: `fit`, `validate`, `test`, `predict`."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import lit_spectral.datamodules  # noqa: F401  (short class names work for what is imported)
from lit_spectral import __version__
from lit_spectral.callbacks import StepCheckpoint
from lit_spectral.callbacks.prediction_writer import check_has_place
from lit_spectral.checkpoint_file import read
from lit_spectral.errors import InputError, check_at_least, mistake, of_settings
from lit_spectral.files import write_text
from lit_spectral.flags import SOURCE
from lit_spectral.methods import Given, Method
from lit_spectral.parsing import ConfigFile, SettingsParser
from lit_spectral.run_bar import RunBar
from lit_spectral.run_folder import RunFolder, own_folder, set_aside, verb_of
from lit_spectral.run_report import RunReport
from lit_spectral.strategies import refuse_by_name
from lit_spectral.sweeps import add_sweeps, sweeps_of, validate_each
from lit_spectral.tasks import Task
from lit_spectral.tasks.meaning import check_limits
from lit_spectral.terminal import is_verbose

__all__ = ["SpectralCLI", "Unrun"]

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
    logger = logging.getLogger("lit_spectral.lightning_cli.parser")
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


class SpectralCLI(LightningCLI):
    """LightningCLI over `Task` and any data module; optimisers are the task's own business."""

    _classes: list[str] | None = None  # of what was trained, if that is given

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        shared, named = {"logger": _parser_log()}, {"prog": "lit-spectral"}
        known, given = self.subcommands(), sys.argv[1:] if args is None else args
        verb = next((arg for arg in given if arg in known or arg in {"-h", "--help"}), None)
        if run and verb in known:
            # Parsers of the others would take most of the start.
            self.subcommands = lambda: {verb: known[verb]}  # type: ignore[method-assign]
        super().__init__(
            Task,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={**shared, **named, **dict.fromkeys(self.subcommands(), shared)} if run else shared,
            args=args,
            run=run,
            # Lightning would write all settings out once more, for hyper-parameters that nothing here reads.
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """As LightningCLI's; what `verbose` is to the trainer follows from the flag that all verbs have."""
        return {verb: {*skipped, "verbose"} for verb, skipped in LightningCLI.subcommands().items()}

    def _parse_ckpt_path(self) -> None:
        """Refuse a checkpoint that can't be read before anything is done; Lightning's takes settings from it here.

        They would replace the flags that were given, and name classes to import.
        """
        subcommand = self.config.get("subcommand")
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        if path is not None and self.config[subcommand].get("adapter") is not None:
            raise InputError("adapter: it and ckpt_path both say what was trained; give one of them")
        if path is None or path in {"best", "last", "hpc"}:
            return
        if not os.path.isdir(path):  # a sharded one is a folder
            names = read(path, summary=True)["lit_spectral"]["init"].get("label_names")
            self._classes = names if isinstance(names, list) else None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What is set at the top of a config, beside `seed_everything`."""
        about = "keep last.ckpt every so many optimizer steps, to go on from (a callback: StepCheckpoint)"
        parser.add_argument("--save_every_n_steps", type=int | None, default=None, help=about)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """As LightningCLI's; verbs that don't train take what was trained elsewhere."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            about = f"{SOURCE}: {subcommand} what is trained there, in place of the config's method and of a ckpt_path"
            parser.add_argument("--adapter", type=str | None, default=None, metavar="SOURCE", help=about)
        if subcommand == "validate":
            add_sweeps(parser)
        return parser

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

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """As LightningCLI's; unless all is to be shown, with our report and bar in place of Lightning's."""
        given = self._get(self.config_init, "trainer")
        if self.subcommand is not None and not is_verbose():
            callbacks = given["callbacks"] if isinstance(given["callbacks"], list) else [given["callbacks"]]
            if given["enable_model_summary"] is None and not _any_of(ModelSummary, callbacks):
                kwargs["enable_model_summary"] = False
            bars = [] if given["enable_progress_bar"] is False or _any_of(ProgressBar, callbacks) else [RunBar()]
            self.trainer_defaults["callbacks"] = [RunReport(), *bars]
        return super().instantiate_trainer(**kwargs)

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
        self._sweeps = sweeps_of(self.config[self.subcommand]) if self.subcommand == "validate" else []
        adapter = self.config[self.subcommand].get("adapter")
        if adapter is not None:
            self.model.method = Given(source=adapter)  # type: ignore[abstract]
            self.model.method.read(self.model.backbone)
            self._classes = self.model.method.class_names
        elif self._sweeps:
            raise InputError(f"{self._sweeps[0].repair}: it is for an adapter; give --adapter SOURCE")
        if self._classes is not None and getattr(self.datamodule, "num_labels", None) == 0:  # it would look for them
            self.datamodule.name_classes(self._classes)
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

    def validate(self, **given: Any) -> Any:
        """As the trainer's; of every value of a sweep, if one is asked for."""
        if not self._sweeps:
            return self.trainer.validate(**given, verbose=is_verbose())
        return validate_each(self.trainer, self._sweeps, **given)

    def test(self, **given: Any) -> Any:
        """As the trainer's."""
        return self.trainer.test(**given, verbose=is_verbose())


def _any_of(kind: type[Callback], callbacks: list[Any]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


class Unrun(SpectralCLI):
    """A subcommand with all that it needs made, and nothing done; whoever asks for it tells what it comes to."""

    def _run_subcommand(self, subcommand: str) -> None:
        told: Any = self.trainer
        told.callbacks = [each for each in told.callbacks if not isinstance(each, RunReport)]


def _check_callbacks(trainer: Trainer) -> None:
    """InputError for a base class, which the parser makes of a mapping that stands where a list should."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if type(callback) in {Callback, Checkpoint, BasePredictionWriter}:
            raise InputError(
                f"trainer.callbacks: {type(callback).__name__} alone does nothing; give a list of `class_path: NAME`"
            )
