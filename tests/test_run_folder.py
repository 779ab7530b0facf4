"""Who may write in a folder: runs at once, one after the other, going on, and those that came to nothing."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from conftest import CONFIGS
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lit_spectral.datamodules import GLUE

from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA
from lit_spectral.run_folder import LOCK, RunFolder
from lit_spectral.tasks import SequenceClassification

CONFIG = "lora_roberta_mrpc"
MINE = "--trainer.logger.init_args.version=mine"
CSV = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: csv, name: x, version: mine}}"
BOTH = (
    "--trainer.logger=[{class_path: TensorBoardLogger, init_args: {save_dir: tb, name: x, version: mine}}, "
    "{class_path: CSVLogger, init_args: {save_dir: csv, name: x, version: mine}}]"
)
# What names a run's folder, the folder, and where its checkpoints are.
PLACES = {
    "tensorboard": ([MINE], f"runs/{CONFIG}/mine", f"runs/{CONFIG}/mine/checkpoints"),
    "csv": ([CSV], "csv/x/mine", "csv/x/mine/checkpoints"),
    "several": ([BOTH], "tb/x/mine", "tb/x/mine/checkpoints"),
    "no logger": (["--trainer.logger=false"], "checkpoints", "checkpoints"),
    "dirpath": (["--trainer.callbacks={class_path: ModelCheckpoint, init_args: {dirpath: kept}}"], "kept", "kept"),
    "root": (["--trainer.logger=false", "--trainer.default_root_dir=root"], "root/checkpoints", "root/checkpoints"),
}


def files(folder):
    """Path to content of what a run leaves."""
    hidden = (path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path): path.read_bytes() for path in hidden}


@pytest.fixture
def started(backbone_folder, mrpc_folder, tmp_path):
    """Start `fit` in a process of its own."""
    processes = []

    def start(*flags):
        local = [f"--model.backbone={backbone_folder('roberta')}", f"--data.path={mrpc_folder}"]
        quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        command = [sys.executable, "-m", "lit_spectral", "fit", f"--config={CONFIGS / CONFIG}.yaml"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen([*command, *local, *quiet, *flags], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_two_runs_at_once_have_a_folder_each(started, tmp_path):
    both = [started("--trainer.max_steps=2", f"--seed_everything={seed}") for seed in (1, 2)]
    assert [process.wait(240) for process in both] == [0, 0]
    folders = sorted(tmp_path.glob("runs/*/version_*"))
    assert [folder.name for folder in folders] == ["version_0", "version_1"]
    for folder in folders:
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1
        assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    seeds = [yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"] for folder in folders]
    assert sorted(seeds) == [1, 2]


@pytest.mark.slow
def test_a_folder_is_refused_while_a_run_writes_there_and_not_after_it_was_killed(started, fit, tmp_path):
    process = started(MINE, "--trainer.max_epochs=100000")
    last = tmp_path / "runs" / CONFIG / "mine" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 200
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(InputError, match="mine: another run is writing there"):
        fit(CONFIG, MINE, f"--ckpt_path={last}")
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    step = torch.load(last, weights_only=True)["global_step"]
    limits = ["--trainer.max_epochs=-1", f"--trainer.max_steps={step + 1}"]
    assert fit(CONFIG, MINE, f"--ckpt_path={last}", *limits).trainer.global_step == step + 1


@pytest.mark.parametrize("place", PLACES)
def test_a_second_run_into_a_folder_is_refused_and_changes_nothing(fit, place):
    flags, folder, checkpoints = PLACES[place]
    fit(CONFIG, *flags)
    before = files(".")
    assert any(name.startswith(f"{checkpoints}/") and name.endswith(".ckpt") for name in before)
    with pytest.raises(InputError, match=f"{folder} holds another run; give another .* or go on with --ckpt_path"):
        fit(CONFIG, *flags, "--seed_everything=1")
    assert files(".") == before


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_a_run_goes_on_in_its_folder(fit, place):
    flags, _, checkpoints = PLACES[place]
    fit(CONFIG, *flags)
    (last, *_) = sorted(Path(checkpoints).glob("*.ckpt"), key=lambda path: path.name != "last.ckpt")
    done = fit(CONFIG, *flags, f"--ckpt_path={last}", "--trainer.max_epochs=2")
    assert done.trainer.current_epoch == 2
    assert torch.load(last, weights_only=True)["epoch"] == (1 if last.name == "last.ckpt" else 0)


def test_what_was_recorded_is_kept_where_a_run_goes_on(fit):
    fit(CONFIG, CSV)
    before = {name: Path("csv/x/mine", name).read_text(encoding="utf-8") for name in ("metrics.csv", "config.yaml")}
    fit(CONFIG, CSV, "--ckpt_path=csv/x/mine/checkpoints/last.ckpt", "--trainer.max_epochs=2")
    assert Path("csv/x/mine/metrics-1.csv").read_text(encoding="utf-8") == before["metrics.csv"]
    assert Path("csv/x/mine/config-1.yaml").read_text(encoding="utf-8") == before["config.yaml"]
    assert yaml.safe_load(Path("csv/x/mine/config.yaml").read_text(encoding="utf-8"))["trainer"]["max_epochs"] == 2


def test_another_runs_checkpoint_gives_no_right_to_a_folder(fit):
    other = fit(CONFIG).trainer.checkpoint_callbacks[1].best_model_path
    fit(CONFIG, MINE)
    with pytest.raises(InputError, match="mine holds another run"):
        fit(CONFIG, MINE, f"--ckpt_path={other}")


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_an_evaluation_has_a_folder_of_its_own_and_leaves_the_fits_alone(fit, verb):
    fit(CONFIG, MINE)
    best = f"runs/{CONFIG}/mine/checkpoints/best.ckpt"
    before = files(".")
    fit(CONFIG, f"--ckpt_path={best}", command=verb)  # under a number of its own
    with pytest.raises(InputError, match="version_0 holds another run"):
        fit(CONFIG, "--trainer.logger.init_args.version=0", f"--ckpt_path={best}", command=verb)
    fit(CONFIG, MINE, f"--ckpt_path={best}", command=verb)  # beside the checkpoint
    after = files(".")
    assert {name: after[name] for name in before} == before
    assert yaml.safe_load(after[f"runs/{CONFIG}/mine/config_{verb}.yaml"])["ckpt_path"] == best


@pytest.mark.parametrize("flags", [["--data.path=./nowhere"], ["--model.method.rank=33"]])
def test_a_run_that_came_to_nothing_leaves_nothing(fit, flags):
    for version in ([], [MINE]):
        with pytest.raises(InputError):
            fit(CONFIG, *version, *flags)
    assert not files(".")
    assert Path(fit(CONFIG).trainer.log_dir).name == "version_0"
    fit(CONFIG, MINE)


def test_folders_that_hold_no_run_are_free(fit, tmp_path):
    folder = tmp_path / "runs" / CONFIG / "mine"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / LOCK).touch()  # of a process that is gone
    fit(CONFIG, MINE)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_run_that_broke_off_before_its_first_step_leaves_a_free_folder(fit, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_spectral.run_folder._remove_unbegun", lambda *args: None)  # nobody tidies up
    with pytest.raises(InputError):
        fit(CONFIG, MINE, "--model.method.rank=33")
    folder = tmp_path / "runs" / CONFIG / "mine"
    assert (folder / "config.yaml").exists()
    fit(CONFIG, MINE)
    assert (
        yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["method"]["init_args"]["rank"] == 8
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ckpt_path=nowhere.ckpt"], "checkpoint: there is no file nowhere.ckpt"),
        (["--ckpt_path=notes.txt"], "checkpoint: notes.txt can't be read as a checkpoint"),
        (["--ckpt_path=last"], "ckpt_path: there is no last checkpoint"),
        (["--ckpt_path=best"], "ckpt_path: best is of a fit in the same process"),
        (["--ckpt_path=hpc"], "ckpt_path: there is no hpc checkpoint"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_checkpoint_that_is_not_there_is_refused_by_name(fit, tmp_path, flags, message, verb):
    (tmp_path / "notes.txt").write_text("no checkpoint")
    with pytest.raises(InputError, match=message):
        fit(CONFIG, *flags, command=verb)
    assert not list(tmp_path.glob("runs/*/version_*"))


def test_last_is_that_of_the_named_folder(fit):
    fit(CONFIG, MINE)
    assert fit(CONFIG, MINE, "--ckpt_path=last", "--trainer.max_epochs=2").trainer.current_epoch == 2


@pytest.fixture
def python(backbone_folder, mrpc_folder, tmp_path, monkeypatch):
    """Call a verb of a trainer in Python; returns the trainer."""
    monkeypatch.chdir(tmp_path)

    def run(logger, verb="fit", trainer=None, task=None, **options):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = trainer or pl.Trainer(logger=logger, max_steps=2, **quiet)
        task = task or SequenceClassification(backbone_folder("bert"), LoRA())
        getattr(trainer, verb)(task, datamodule=GLUE("mrpc", mrpc_folder, batch_size=8), **options)
        return trainer

    return run


def test_in_python_a_second_run_into_a_folder_is_refused_and_going_on_is_not(python):
    python(TensorBoardLogger("logs", version="mine"))
    (last,) = Path("logs/lightning_logs/mine/checkpoints").glob("*.ckpt")
    before = last.read_bytes()
    with pytest.raises(InputError, match="mine holds another run"):
        python(TensorBoardLogger("logs", version="mine"))
    assert last.read_bytes() == before
    python(TensorBoardLogger("logs", version="mine"), ckpt_path=last)


def test_in_python_what_is_refused_saves_nothing_either(python):
    def saving():
        keep = ModelCheckpoint(filename="last", save_on_exception=True, enable_version_counter=False)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "max_steps": 2}
        return pl.Trainer(logger=TensorBoardLogger("logs", version="mine"), callbacks=[keep], **quiet)

    python(None, trainer=saving())
    before = files("logs/lightning_logs/mine/checkpoints")
    (other,) = Path(python(TensorBoardLogger("logs")).log_dir).rglob("*.ckpt")
    for options in ({}, {"ckpt_path": other}):
        with pytest.raises(InputError, match="mine holds another run"):
            python(None, trainer=saving(), **options)
    assert files("logs/lightning_logs/mine/checkpoints") == before


def test_in_python_one_logger_serves_several_trainers(python):
    logger = CSVLogger("logs", version="mine")
    trainer = python(logger)
    python(logger, "validate", trainer=trainer, task=trainer.lightning_module)
    python(logger, "predict", task=trainer.lightning_module)
    assert Path("logs/lightning_logs/mine/predictions.jsonl").exists()


def test_a_checkpoint_callback_of_one_run_does_not_write_into_its_folder_in_another(python):
    callback = ModelCheckpoint(filename="best")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "max_steps": 2}
    python(None, trainer=pl.Trainer(callbacks=[callback], **quiet))
    with pytest.raises(InputError, match="version_0/checkpoints holds another run; give another dirpath"):
        python(None, trainer=pl.Trainer(callbacks=[callback], **quiet))


def test_a_process_that_is_spawned_writes_where_the_one_that_started_it_has_claimed(tmp_path):
    trainer = pl.Trainer(logger=CSVLogger(tmp_path, version="mine"), accelerator="cpu")
    claimed = RunFolder()
    claimed.claim(trainer, "fit")
    with pytest.raises(InputError, match="mine: another run is writing there"):
        RunFolder().claim(trainer, "fit")
    pickle.loads(pickle.dumps(claimed)).claim(trainer, "fit")


def test_processes_together_are_refused_before_the_others_are_started(fit, monkeypatch):
    fit(CONFIG, MINE)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("another process"))
    with pytest.raises(InputError, match="mine holds another run"):
        fit(CONFIG, MINE, "--trainer.strategy=ddp", "--trainer.devices=2")
