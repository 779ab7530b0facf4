"""Checkpoints that were given: nothing in them is run, whichever way they come in."""

import functools
import http.server
import os
import pickle
import threading

import pytest
import torch
from checkpoint_ways import WAYS, damage, enter, good, one_line, put, trained  # noqa: F401 (fixtures)

from lit_spectral import cli
from lit_spectral.checkpoint import load
from lit_spectral.checkpoint_file import read
from lit_spectral.errors import InputError


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.fixture
def command_line(backbone_folder, mrpc_folder, tmp_path, monkeypatch, capsys):
    """Give a checkpoint to a verb of the command line; returns the one line that it ends in, with exit status 2."""
    monkeypatch.chdir(tmp_path)
    fits = ["--model=SequenceClassification", f"--model.backbone={backbone_folder('bert')}", "--data=GLUE"]
    fits += ["--data.task=mrpc", f"--data.path={mrpc_folder}", "--trainer.accelerator=cpu", "--trainer.logger=false"]

    def run(verb, path):
        flags = {
            "evaluate": ["--checkpoint", str(path), "--tasks", "gsm8k"],
            "retain": ["--checkpoint", str(path), "--corpora", "python-docs"],
            "export": [str(path), "--output", "out"],
        }
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, *flags.get(verb, [*fits, f"--ckpt_path={path}"])])
        assert stop.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        return lines[-1]

    return run


VERBS = ["fit", "validate", "test", "predict", "evaluate", "retain"]


@pytest.fixture
def served(tmp_path, good, marker):
    """The address of a checkpoint that runs code when it is unpickled, on a server of this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    damage(good, folder / "hostile.ckpt", lambda content: content.update(extra=Hostile(marker)))
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(args)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hostile.ckpt", asked
        server.shutdown()


@pytest.mark.parametrize("way", WAYS)
def test_an_address_is_refused_and_not_asked(enter, served, marker, way):
    address, asked = served
    with pytest.raises(InputError, match="weights_only false" if way == "weights_only=False" else "download the file"):
        enter[way](address)
    assert not marker.exists()
    assert not asked


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_line_refuses_an_address(command_line, served, marker, verb):
    address, asked = served
    assert f"checkpoint: {address} is an address; download the file" in command_line(verb, address)
    assert not marker.exists()
    assert not asked


@pytest.mark.parametrize("address", ["https://a/b.ckpt", "s3://a/b.ckpt", "hf://a/b.ckpt", "simplecache::http://a/b"])
def test_addresses_of_all_file_systems_are_refused(address):
    with pytest.raises(InputError, match="is an address"):
        read(address)


@pytest.mark.parametrize("way", WAYS)
def test_code_in_a_checkpoint_is_not_run(enter, good, tmp_path, marker, way):
    path = damage(good, tmp_path / "hostile.ckpt", lambda content: content.update(extra=Hostile(marker)))
    with pytest.raises(InputError) as error:
        enter[way](path)
    assert "hostile.ckpt" in one_line(error)
    assert not marker.exists()


@pytest.mark.parametrize("verb", [*VERBS, "export"])
def test_the_command_line_names_the_code_in_a_checkpoint(command_line, good, tmp_path, marker, verb):
    path = damage(good, tmp_path / "hostile.ckpt", lambda content: content.update(extra=Hostile(marker)))
    line = command_line(verb, path)
    assert line.startswith(f"error: checkpoint: {path} holds ")
    assert "mkdir, which may be code and is not run" in line
    assert not marker.exists()


SLOTS = {
    "state_dict": put("state_dict", "model.evil"),
    "optimizer state": put("optimizer_states", 0, "state", "evil"),
    "optimizer settings": put("optimizer_states", 0, "param_groups", 0, "lr"),
    "schedule": put("lr_schedulers", 0, "last_epoch"),
    "callbacks": put("callbacks", "Timer", "evil"),
    "loops": put("loops", "fit_loop", "evil"),
    "ours": put("lit_spectral", "settings", "evil"),
    "seed": put("lit_spectral", "seed"),
    "hyper_parameters": put("hyper_parameters", "evil"),
    "their class": put("hparams_type"),
    "data": put("GLUE"),
    "averages": put("current_model_state"),
    "precision": put("MixedPrecision"),
}


@pytest.mark.parametrize("slot", SLOTS)
def test_code_in_no_slot_of_a_checkpoint_is_run(enter, good, tmp_path, marker, slot):
    path = damage(good, tmp_path / "hostile.ckpt", lambda content: SLOTS[slot](content, Hostile(marker)))
    with pytest.raises(pickle.UnpicklingError):  # it is there, and would be run
        torch.load(path, weights_only=True)
    with pytest.raises(InputError, match="may be code and is not run") as error:
        enter["fit"](path)
    assert one_line(error)
    assert not marker.exists()


def test_a_checkpoints_hyper_parameters_replace_no_flag_and_import_nothing(fit, tmp_path, caplog):
    flags = ["--trainer.max_steps=1", "--trainer.logger=false", "--trainer.limit_val_batches=0"]
    trainer = fit("fclora_roberta_mrpc", *flags).trainer
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    (tmp_path / "evil_module.py").write_text("open('imported', 'w').close()")
    evil = {"_class_path": "evil_module.Task", "_instantiator": "evil_module.build", "lr_scheduler": "constant"}
    path = damage(
        tmp_path / "good.ckpt", tmp_path / "hyper.ckpt", lambda content: content.update(hyper_parameters=evil)
    )
    flags = ["--model.lr_scheduler=cosine", "--trainer.logger=false", f"--ckpt_path={path}"]
    done = fit("fclora_roberta_mrpc", *flags, command="validate")
    assert done.model.lr_scheduler == "cosine"
    assert "hyper_parameters, which are passed over" in caplog.text
    assert load(path).method == done.model.method
    assert not (tmp_path / "imported").exists()
