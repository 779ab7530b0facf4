"""What a run of a comparison records of itself."""

import json

import lightning.pytorch as pl
import pytest
import torch
from lit_spectral.callbacks import RunRecord

from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA


def test_a_record_is_of_the_last_step_though_it_lies_within_an_epoch(train, tmp_path):
    trainer = train(LoRA(rank=2), RunRecord(str(tmp_path / "r.json")), max_epochs=9, max_steps=11)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["steps"] == 11
    assert found["metrics"]["val/loss"] == float(trainer.callback_metrics["val/loss"])


def test_a_record_names_the_device_that_trained_though_lightning_has_moved_the_model_off_it(
    train, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the card {device.index}")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)

    class OnACard(pl.Callback):
        def teardown(self, trainer, pl_module, stage):  # this machine need not have one to train on
            monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda:3"))

    train(LoRA(rank=2), OnACard(), RunRecord(str(tmp_path / "r.json")))
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["device"], found["peak_memory"]) == ("the card 3", 7)


def test_a_run_that_failed_leaves_no_record(train, tmp_path):
    class Fails(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        train(LoRA(rank=2), RunRecord(str(tmp_path / "r.json")), Fails())
    assert not (tmp_path / "r.json").exists()


def test_numbers_of_parameters_are_matched(train, tmp_path):
    with pytest.raises(InputError, match="trainable parameters, where 10 are compared with"):
        train(LoRA(rank=2), RunRecord(str(tmp_path / "r.json"), parameters=10))
