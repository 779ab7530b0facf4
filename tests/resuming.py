"""Runs that are saved, and gone on with."""

import functools
import logging

import lightning.pytorch as pl
import pytest
import torch
from lit_spectral.datamodules import GLUE

from lit_spectral.adapters import trained_state
from lit_spectral.tasks import SequenceClassification


def adamw(lr=1e-2, weight_decay=0.0, **settings):
    return functools.partial(torch.optim.AdamW, lr=lr, weight_decay=weight_decay, **settings)


class Save(pl.Callback):
    """Keeps the checkpoint after so many steps."""

    def __init__(self, path, step=8):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class Rates(pl.Callback):
    """Settings of each group at the start of every batch, by the group's name."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, *args):
        groups = trainer.optimizers[0].param_groups
        self.seen.append({g["name"]: {k: v for k, v in g.items() if k not in {"params", "name"}} for g in groups})

    def of(self, name, setting="lr"):
        return [groups[name][setting] for groups in self.seen]


@pytest.fixture
def run(backbone_folder, mrpc_folder, tmp_path):
    """Fit the tiny MRPC, 8 steps an epoch, 2 epochs; returns the trainer."""

    def fit(method, *callbacks, optimizer=None, data=None, path=None, seed=0, task=None, **options):
        pl.seed_everything(seed)
        settings = {key: options.pop(key) for key in ("lr_scheduler", "warmup_steps") if key in options}
        if task is None:
            task = SequenceClassification(backbone_folder("bert"), method, optimizer=optimizer or adamw(), **settings)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        options = {"max_epochs": 2, "accelerator": "cpu", "logger": False} | quiet | options
        trainer = pl.Trainer(callbacks=list(callbacks), default_root_dir=tmp_path, **options)
        trainer.fit(task, data or GLUE("mrpc", mrpc_folder, batch_size=8), ckpt_path=path)
        return trainer

    return fit


def warnings_of(caplog):
    return [
        r.getMessage() for r in caplog.records if r.name.startswith("lit_spectral") and r.levelno >= logging.WARNING
    ]


def weights(trainer):
    return trained_state(trainer.lightning_module.model)
