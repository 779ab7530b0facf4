"""A run owns its folders: who may write where is decided before anything is written."""

from __future__ import annotations

import itertools
import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import lightning.pytorch as pl
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]
from lightning.pytorch.trainer.states import TrainerFn

from lit_spectral.errors import InputError
from lit_spectral.files import SCRATCH

__all__ = ["RunFolder", "has_own_folder", "is_written_to", "own_folder", "remove_run", "set_aside", "verb_of"]

log = logging.getLogger(__name__)

# Held by the process that writes in a folder; there until its run begins; held while loggers choose their numbers.
LOCK, UNBEGUN, NUMBERS = ".run.lock", ".run.unbegun", ".runs.lock"
# What a run leaves: of a folder without any of these, nothing can be lost.
RECORDS = ("config.yaml", "hparams.yaml", "metrics.csv", "events.out.tfevents.*")
CHECKPOINTS = ("*.ckpt", "checkpoints/*.ckpt")
_VERSION = "version of the logger (--trainer.logger.init_args.version)"
# The loggers and checkpoint callbacks of this process that have begun to write, whatever trainer they are in now.
_begun: WeakSet[Any] = WeakSet()


class _Claim(NamedTuple):
    folder: Path
    owner: Any  # the logger or callback that writes there
    root: Path | None  # of a logger: where its versions are
    setting: str  # by which the user says where


class RunFolder(Callback):
    """Claims the folders of loggers, and in `fit` those of checkpoints, for one run.

    A version that nobody named is the next free number, also of runs that start at once. A folder
    that was named is taken if it holds no run, or if this one goes on from a checkpoint of that very
    run; else it is refused. A run that never came to its first batch counts for nothing, nor does the
    lock of a process that is gone. The process of rank 0, which alone writes, claims for all. Folders
    that aren't local, and those of loggers other than TensorBoard's and CSV's, are left to these.
    """

    def __init__(self) -> None:
        self._locks: dict[Path, FileLock | None] = {}  # None where the process that started this one holds it
        self._claims: list[_Claim] = []  # that have not begun
        self._undecided: list[_Claim] = []  # of which it must turn out that the checkpoint is theirs

    def __getstate__(self) -> dict[str, Any]:
        """For processes that are spawned: the locks stay with this one."""
        return self.__dict__ | {"_locks": dict.fromkeys(self._locks)}

    def before(self, trainer: pl.Trainer) -> None:
        """Claim the folders of what the trainer is about to do, from what is known then."""
        self.claim(trainer, verb_of(trainer))

    def claim(self, trainer: pl.Trainer, verb: str, ckpt_path: str | None = None, known: bool = False) -> None:
        """Claim what isn't claimed yet, before a logger is used; a second call does nothing.

        Args:
            trainer: whose loggers and checkpoint callbacks write.
            verb: `fit`, `validate`, `test` or `predict`.
            ckpt_path: as `trainer.fit` takes it.
            known: whether that is what will be given; else what becomes of a folder with a run in it
                is decided when the checkpoint has been read.

        Raises:
            InputError: a folder that another run writes to or has written to; no `last` or `best` checkpoint.
        """
        if trainer.local_rank or trainer.node_rank or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        try:
            new = [*self._of_loggers(trainer), *(self._of_checkpoints(trainer) if verb == "fit" else ())]
            _check_keyword(trainer, ckpt_path)
            held = [claim for claim in new if claim.owner not in _begun and _holds_run(claim)]
            if held and not _goes_on(trainer, ckpt_path, new):
                if known:
                    raise _taken(held[0])
                self._undecided += held
            for claim in held:
                if isinstance(claim.owner, CSVLogger):
                    set_aside(claim.folder / "metrics.csv")  # which it would remove
        except (InputError, OSError) as error:
            self.release()
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGTERM)  # other processes, which would wait for this one
            if isinstance(error, OSError):
                raise InputError(f"trainer: the run's folder can't be written: {error}") from error
            raise

    def release(self) -> None:
        """Let others write in the folders, and remove those in which nothing has begun."""
        for claim in self._claims:
            if claim.root is not None and (claim.folder / UNBEGUN).exists():
                with FileLock(claim.root / NUMBERS):
                    _remove_unbegun(claim.folder, claim.root)
        for lock in filter(None, self._locks.values()):
            lock.release()
        for claim in self._claims:
            if (
                claim.root is None
                and claim.folder.is_dir()
                and {path.name for path in claim.folder.iterdir()} == {LOCK}
            ):
                (claim.folder / LOCK).unlink()
                claim.folder.rmdir()
        self._locks, self._claims, self._undecided = {}, [], []

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Decide, while there is no step that a checkpoint callback would save when this is refused."""
        self._decide(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide, where a checkpoint would have been read by now."""
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._decide(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From now on the folders hold a run."""
        self._begin(trainer)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on the folders hold a run, unless it's a fit that has not begun."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._begin(trainer)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on the folders hold a run."""
        self._begin(trainer)

    def on_predict_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on the folders hold a run."""
        self._begin(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let others write in the folders."""
        self.release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let others write in the folders."""
        self.release()

    def _begin(self, trainer: pl.Trainer) -> None:
        self._decide(trainer)
        for claim in self._claims:
            (claim.folder / UNBEGUN).unlink(missing_ok=True)
            _begun.add(claim.owner)
        self._claims = []

    def _decide(self, trainer: pl.Trainer) -> None:
        if self._undecided and not _goes_on(trainer, trainer.ckpt_path, self._claims):
            raise _taken(self._undecided[0])
        self._undecided = []

    def _of_loggers(self, trainer: pl.Trainer) -> Iterator[_Claim]:
        for logger in filter(_is_local, trainer.loggers):
            root = Path(str(logger.root_dir)).expanduser().absolute()
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / NUMBERS):  # a logger chooses its number when it is first asked for its folder
                yield from self._locked(_Claim(Path(str(logger.log_dir)).absolute(), logger, root, _VERSION))

    def _of_checkpoints(self, trainer: pl.Trainer) -> Iterator[_Claim]:
        for callback in trainer.checkpoint_callbacks:
            folder = _checkpoint_folder(trainer, callback)
            if folder is not None and not any(folder.is_relative_to(claimed) for claimed in self._locks):
                setting = _VERSION if trainer.loggers else "--trainer.default_root_dir"
                if getattr(callback, "dirpath", None) is not None:
                    setting = f"dirpath of {type(callback).__name__}"
                yield from self._locked(_Claim(folder, callback, None, setting))

    def _locked(self, claim: _Claim) -> Iterator[_Claim]:
        """The claim, with its folder locked, unless it was so before."""
        folder = claim.folder
        if folder in self._locks:
            return
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{folder}: another run is writing there; give another {claim.setting}") from None
        self._locks[folder] = lock
        self._claims.append(claim)
        _remove(folder, (f"*{SCRATCH}", f"checkpoints/*{SCRATCH}"))  # of a process that was killed
        if (folder / UNBEGUN).exists():
            _remove(folder, RECORDS)
        elif claim.root is not None and not _holds_run(claim):
            (folder / UNBEGUN).touch()
        yield claim


def own_folder(trainer: pl.Trainer) -> Path | None:
    """The run's log folder, the same on all processes, all of which must ask; None where no logger has one.

    Without loggers there is no folder of the run's own, and of other loggers than TensorBoard's and
    CSV's none that is known.
    """
    folder = next((logger.log_dir for logger in trainer.loggers if _is_local(logger)), None)
    folder = trainer.strategy.broadcast(folder)
    return None if folder is None else Path(folder)


def has_own_folder(trainer: pl.Trainer) -> bool:
    """Whether `own_folder` gives one; to be asked before there are other processes, or by one of them alone."""
    return any(map(_is_local, trainer.loggers))


def verb_of(trainer: pl.Trainer) -> str:
    """What the trainer is at: `fit`, `validate`, `test` or `predict`."""
    assert trainer.state.fn is not None
    return str(trainer.state.fn.value)


def is_written_to(folder: Path) -> bool:
    """Whether a process has claimed it, and lives."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def remove_run(folder: Path) -> None:
    """Remove a run's records and checkpoints, for one that is to start there anew."""
    _remove(folder, (*RECORDS, *CHECKPOINTS))


def set_aside(file: Path) -> None:
    """Rename `name.suffix`, if it is there, to the first of `name-1.suffix`, `name-2.suffix`, … that isn't."""
    if file.exists():
        names = (file.with_name(f"{file.stem}-{number}{file.suffix}") for number in itertools.count(1))
        kept = next(name for name in names if not name.exists())
        file.rename(kept)
        log.info("%s, of the run that goes on, is kept as %s", file, kept.name)


def _holds_run(claim: _Claim) -> bool:
    left = (*RECORDS, *CHECKPOINTS) if claim.root is not None else CHECKPOINTS[:1]
    return any(any(claim.folder.glob(pattern)) for pattern in left)


def _remove(folder: Path, patterns: tuple[str, ...]) -> None:
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()  # sharded ones are folders


def _remove_unbegun(folder: Path, root: Path) -> None:
    _remove(folder, (*RECORDS, UNBEGUN))
    if {path.name for path in folder.iterdir()} == {LOCK}:
        (folder / LOCK).unlink()
        while folder != root and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _is_local(logger: Any) -> bool:
    """Whether it has a folder for each version, on this machine."""
    return isinstance(logger, (TensorBoardLogger, CSVLogger)) and "://" not in str(logger.save_dir)


def _checkpoint_folder(trainer: pl.Trainer, callback: Any) -> Path | None:
    """Where a checkpoint callback writes, as Lightning finds it; None where that isn't local or not known."""
    folder = getattr(callback, "dirpath", None)
    if folder is None and trainer.loggers:
        logger = trainer.loggers[0]
        if not _is_local(logger):
            return None
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(str(logger.save_dir), str(logger.name), version, "checkpoints")
    elif folder is None:
        folder = Path(trainer.default_root_dir, "checkpoints")
    return None if "://" in str(folder) else Path(folder).absolute()


def _goes_on(trainer: pl.Trainer, ckpt_path: Any, claims: list[_Claim]) -> bool:
    """Whether the checkpoint lies in a folder that the run is to write to."""
    if ckpt_path is None:  # a job that SLURM has put back goes on from what Lightning saved then
        return SLURMEnvironment.detect() and bool(_saved_by_slurm(trainer))
    if ckpt_path in {"last", "hpc"}:
        return True
    checkpoints = [_checkpoint_folder(trainer, callback) for callback in trainer.checkpoint_callbacks]
    places = [*(claim.folder for claim in claims), *filter(None, checkpoints)]
    return any(Path(ckpt_path).resolve().is_relative_to(place.resolve()) for place in places)


def _check_keyword(trainer: pl.Trainer, ckpt_path: str | None) -> None:
    """InputError where a word stands for a checkpoint that there isn't."""
    if ckpt_path == "best" and not getattr(trainer.checkpoint_callback, "best_model_path", ""):
        raise InputError("ckpt_path: best is of a fit in the same process, and there was none; give the file's path")
    if ckpt_path == "last":
        folders = [_checkpoint_folder(trainer, callback) for callback in trainer.checkpoint_callbacks]
        known = list(dict.fromkeys(filter(None, folders)))
        if not any(any(folder.glob("last*.ckpt")) for folder in known):
            where = ", ".join(map(str, known)) or "no folder for checkpoints"
            raise InputError(f"ckpt_path: there is no last checkpoint ({where}); give the file's path")
    if ckpt_path == "hpc" and not _saved_by_slurm(trainer):
        raise InputError(f"ckpt_path: there is no hpc checkpoint in {trainer.default_root_dir}; give the file's path")


def _saved_by_slurm(trainer: pl.Trainer) -> list[Path]:
    return list(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))


def _taken(claim: _Claim) -> InputError:
    folder = claim.folder
    found = sorted(path for pattern in CHECKPOINTS for path in folder.glob(pattern))
    last = next((path for path in found if path.stem.startswith("last")), found[0] if found else None)
    resume = f", or go on with --ckpt_path {last}" if last is not None else ""
    return InputError(f"{folder} holds another run; give another {claim.setting}, or remove the folder{resume}")
