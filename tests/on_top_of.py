"""Runs on top of earlier adapters, and what these are: fixtures of the tests of `on_top_of`."""

import dataclasses
import os
import shutil

import lightning.pytorch as pl
import pytest
import torch
import transformers
from conftest import move
from lit_spectral.datamodules import GLUE
from test_continue import Look
from test_methods import SHORT

from lit_spectral import cli
from lit_spectral.methods import FCLoRA, LoRA
from lit_spectral.tasks import SequenceClassification

EARLIER = (LoRA(rank=2), FCLoRA(rank=3))
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def adamw(groups):
    return torch.optim.AdamW(groups, lr=1e-2, eps=1e-4, weight_decay=0.0)  # no large step of a rounding


def fit_on(task, data, folder, path=None, steps=3, look=True, callbacks=(), **settings):
    """Fit a task for three steps; what was seen, and the trainer. Its random numbers begin when it is adapted."""
    look, load_model = (Look() if look else pl.Callback()), task.load_model

    def loaded(source):
        found = load_model(source)
        torch.manual_seed(0)  # a head that the files lack has taken some
        return found

    task.load_model = loaded
    pl.seed_everything(0)
    trainer = pl.Trainer(max_steps=steps, callbacks=[look, *callbacks], num_sanity_val_steps=0, limit_val_batches=0,
                         enable_checkpointing=False, default_root_dir=folder, **QUIET, **settings)  # fmt: skip
    trainer.fit(task, data, ckpt_path=path)
    return look, trainer


def moved(task, folder, data):
    """A checkpoint of a task whose trained tensors lie far from where they began."""
    trainer = fit_on(task, data, folder, steps=1)[1]
    move(task.model, 0.05)
    trainer.save_checkpoint(folder / "source.ckpt")
    return str(folder / "source.ckpt")


@pytest.fixture(scope="module")
def bert(backbone_folder, tmp_path_factory):
    """A backbone with a pooler, as those of BERT's authors: it is no part of a new head."""
    folder = tmp_path_factory.mktemp("bert") / "model"
    shutil.copytree(backbone_folder("bert"), folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertForPreTraining(transformers.AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(bert, mrpc_folder, tmp_path_factory):
    """From methods to checkpoints of them, and to a model with all of these merged; made once."""
    known = {}

    def sources(*methods):
        found = []
        for method in methods:
            if str(method) not in known:
                task = SequenceClassification(bert, method)
                folder = tmp_path_factory.mktemp("source")
                known[str(method)] = moved(task, folder, GLUE("mrpc", mrpc_folder, batch_size=8))
            found.append(known[str(method)])
        return found

    def merged(*methods):
        if str(methods) not in known:
            known[str(methods)] = str(tmp_path_factory.mktemp("merged") / "model")
            given = sources(*methods)
            flags = ["--heads_of", given[-1], "--to", "merged", "--output", known[str(methods)]]
            cli.main(["merge", *given, *flags])
        return known[str(methods)]

    sources.merged = merged
    return sources


@pytest.fixture(scope="module")
def run(bert, mrpc_folder):
    """Fit a method to a checkpoint; returns the task and what was seen."""

    def of(method, file, backbone=None, path=None, steps=3, **settings):
        task = SequenceClassification(backbone or bert, method, optimizer=adamw)
        look, trainer = fit_on(task, GLUE("mrpc", mrpc_folder, batch_size=8), file.parent, path, steps, **settings)
        trainer.save_checkpoint(file)
        return task, look

    return of


@pytest.fixture(scope="module")
def stacked(made, run, tmp_path_factory):
    """A method on top of two others, by its name, made once: the task, what was seen, its checkpoint, what it lay on.

    The others' checkpoints are gone.
    """
    known = {}

    def of(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("stacked")
            copies = [shutil.copy(path, str(folder / f"{number}.ckpt")) for number, path in enumerate(made(*EARLIER))]
            task, look = run(dataclasses.replace(SHORT[name], on_top_of=copies), folder / "last.ckpt")
            for copy in copies:
                os.remove(copy)
            known[name] = task, look, str(folder / "last.ckpt"), copies
        return known[name]

    return of
