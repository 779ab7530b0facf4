"""A checkpoint, and every way in which one is read."""

import functools

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lit_spectral.datamodules import GLUE

from lit_spectral.checkpoint import load
from lit_spectral.methods import LoRA
from lit_spectral.tasks import SequenceClassification, Task


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A place for a checkpoint that is trained once."""
    return tmp_path_factory.mktemp("trained") / "good.ckpt"


@pytest.fixture
def good(trained, train):
    if not trained.exists():
        train(LoRA(rank=2), Timer(), EarlyStopping("train/loss"), max_steps=2).save_checkpoint(trained)
    return trained


def damage(good, path, change):
    """A copy of a checkpoint, changed; with pickles of anything in it."""
    content = torch.load(good, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def ways(backbone_folder, mrpc_folder, monkeypatch):
    """Every way in which a checkpoint comes in, by name: each takes a path or an address."""
    task = functools.partial(SequenceClassification, backbone_folder("bert"), LoRA(rank=2))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = functools.partial(pl.Trainer, max_steps=1, enable_model_summary=False, **quiet)

    def run(verb):
        return lambda path: getattr(trainer(), verb)(task(), datamodule=GLUE("mrpc", mrpc_folder), ckpt_path=path)

    return {
        **{verb: run(verb) for verb in ("fit", "validate", "test", "predict")},
        "weights_only=False": lambda path: trainer().validate(
            task(), datamodule=GLUE("mrpc", mrpc_folder), ckpt_path=path, weights_only=False
        ),
        "load": load,
        "load_from_checkpoint": Task.load_from_checkpoint,
        "load_from_checkpoint of data": GLUE.load_from_checkpoint,
    }


@pytest.fixture
def enter(backbone_folder, mrpc_folder, monkeypatch):
    return ways(backbone_folder, mrpc_folder, monkeypatch)


def one_line(error):
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


WAYS = ["fit", "validate", "test", "predict", "weights_only=False", "load", "load_from_checkpoint"]


WAYS += ["load_from_checkpoint of data"]


def put(*keys):
    """A function that puts a value below these keys of a checkpoint."""

    def change(content, value):
        for key in keys[:-1]:
            content = content[key] if isinstance(key, int) else content.setdefault(key, {})
        content[keys[-1]] = value

    return change
