"""Checkpoints, backbones and data that were given: nothing in them is run, and a damaged one is one line."""

import copy
import functools
import http.server
import math
import os
import pickle
import random
import shutil
import threading
import zipfile

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.demos.boring_classes import BoringModel
from lit_spectral.callbacks import SpectralMonitor
from lit_spectral.datamodules import GLUE

from lit_spectral import cli
from lit_spectral.checkpoint import load
from lit_spectral.checkpoint_file import read, tensor_digests
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, LoRA
from lit_spectral.tasks import CausalLM, SequenceClassification, Task


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A place for a checkpoint that is trained once."""
    return tmp_path_factory.mktemp("trained") / "good.ckpt"


@pytest.fixture
def good(trained, train):
    if not trained.exists():
        train(LoRA(rank=2), Timer(), EarlyStopping("train/loss"), max_steps=2).save_checkpoint(trained)
    return trained


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


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
        }
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, *flags.get(verb, [*fits, f"--ckpt_path={path}"])])
        assert stop.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        return lines[-1]

    return run


def one_line(error):
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


VERBS = ["fit", "validate", "test", "predict", "evaluate", "retain"]
WAYS = ["fit", "validate", "test", "predict", "weights_only=False", "load", "load_from_checkpoint"]
WAYS += ["load_from_checkpoint of data"]


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
        threading.Thread(target=server.serve_forever, daemon=True).start()
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


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_line_names_the_code_in_a_checkpoint(command_line, good, tmp_path, marker, verb):
    path = damage(good, tmp_path / "hostile.ckpt", lambda content: content.update(extra=Hostile(marker)))
    line = command_line(verb, path)
    assert line.startswith(f"error: checkpoint: {path} holds ")
    assert "mkdir, which may be code and is not run" in line
    assert not marker.exists()


def put(*keys):
    """A function that puts a value below these keys of a checkpoint."""

    def change(content, value):
        for key in keys[:-1]:
            content = content[key] if isinstance(key, int) else content.setdefault(key, {})
        content[keys[-1]] = value

    return change


SLOTS = {
    "state_dict": put("state_dict", "model.evil"),
    "optimizer state": put("optimizer_states", 0, "state", "evil"),
    "optimizer settings": put("optimizer_states", 0, "param_groups", 0, "lr"),
    "schedule": put("lr_schedulers", 0, "last_epoch"),
    "callbacks": put("callbacks", "Timer", "evil"),
    "loops": put("loops", "fit_loop", "evil"),
    "ours": put("lit_spectral", "settings", "evil"),
    "random numbers": put("lit_spectral", "rng_state"),
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
    assert load(path).method == FCLoRA(**vars(done.model.method))
    assert not (tmp_path / "imported").exists()


BAD = {
    "missing": (lambda path: None, "there is no file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "garbage": (lambda path: path.write_bytes(random.Random(0).randbytes(5000)), "can't be read as a checkpoint"),
    "text": (lambda path: path.write_text("no checkpoint\n"), "can't be read as a checkpoint"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"state_dict": {}})), "can't be read as a checkpoint"),
    "old format": (
        lambda path: torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False),
        "can't be read as a checkpoint",
    ),
    "zip": (lambda path: zipfile.ZipFile(path, "w").close(), "can't be read as a checkpoint"),
    "script": (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path), "can't be read"),
    "list": (lambda path: torch.save([1, 2], path), "was not written by lit-spectral"),
    "tensor": (lambda path: torch.save(torch.ones(2), path), "was not written by lit-spectral"),
    "weights": (lambda path: torch.save({"weight": torch.ones(2)}, path), "was not written by lit-spectral"),
    "another's": (
        lambda path: torch.save({"state_dict": {}, "epoch": 0, "global_step": 1, "loops": {}}, path),
        "was not written by lit-spectral",
    ),
}


@pytest.mark.parametrize("way", ["fit", "validate", "load", "load_from_checkpoint of data"])
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_checkpoint_is_refused_by_name_and_remedy(enter, tmp_path, kind, way):
    write, message = BAD[kind]
    write(tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match=message) as error:
        enter[way](tmp_path / "bad.ckpt")
    assert "bad.ckpt" in one_line(error)
    assert "give a .ckpt that fit wrote" in one_line(error)


def not_finite(content, value):
    next(iter(content["state_dict"].values())).view(-1)[0] = value
    content["lit_spectral"]["digests"] = tensor_digests(content)


FAULTS = {
    "no weights": (lambda content: content.pop("state_dict"), "it lacks state_dict"),
    "no loops": (lambda content: content.pop("loops"), "it lacks loops"),
    "no method": (lambda content: content["lit_spectral"].pop("method"), "an earlier version .* without method"),
    "no checksums": (lambda content: content["lit_spectral"].pop("digests"), "earlier version .* without digests"),
    "a list of weights": (lambda content: content.update(state_dict=[]), "state_dict is not what fit writes"),
    "a number for a weight": (lambda content: content["state_dict"].update(x=1), "x is not what fit writes"),
    "a step in words": (lambda content: content.update(global_step="two"), "global_step is not what fit writes"),
    "no random state": (lambda content: content["lit_spectral"].update(rng_state=1), "rng_state is not what fit"),
    "another weight": (lambda content: next(iter(content["state_dict"].values())).add_(1), "state_dict is damaged"),
    "another state": (
        lambda content: content["optimizer_states"][0]["state"][0]["exp_avg"].add_(1),
        "optimizer_states is damaged",
    ),
    "a weight too many": (lambda content: content["state_dict"].update(x=torch.ones(1)), "state_dict is damaged"),
    "nan": (lambda content: not_finite(content, math.nan), "weights are not finite: model"),
    "inf": (lambda content: not_finite(content, -math.inf), "weights are not finite: model"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_with_a_part_that_cannot_be_used_names_file_and_part(enter, good, tmp_path, fault):
    change, message = FAULTS[fault]
    path = damage(good, tmp_path / "faulty.ckpt", change)
    for way in ("validate", "load"):
        with pytest.raises(InputError, match=message) as error:
            enter[way](path)
        assert "faulty.ckpt" in one_line(error)


def test_a_cut_checkpoint_is_refused_wherever_it_is_cut(good, tmp_path):
    content = good.read_bytes()
    for part in range(1, 20):
        (tmp_path / "cut.ckpt").write_bytes(content[: len(content) * part // 20])
        with pytest.raises(InputError, match=r"cut\.ckpt can't be read as a checkpoint"):
            read(tmp_path / "cut.ckpt")


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return type(first) is type(second) and (first == second)


def refused(path):
    """Whether a damaged checkpoint is, in one line that names it."""
    try:
        read(path)
    except InputError as error:
        message = str(error)
    else:
        return False
    return len(message.splitlines()) == 1 and str(path) in message


def test_a_flipped_bit_is_found_or_changes_nothing(good, tmp_path):
    whole, content, draw, count = read(good), good.read_bytes(), random.Random(1), 0
    with zipfile.ZipFile(good) as archive:
        pickled = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
    places = [len(content) * index // 60 + draw.randrange(len(content) // 60) for index in range(60)]
    places += [pickled.header_offset + draw.randrange(pickled.file_size) for _ in range(60)]  # where settings are
    for index in places:
        flipped = bytearray(content)
        flipped[index] ^= 1 << draw.randrange(8)
        (tmp_path / "flipped.ckpt").write_bytes(flipped)
        if refused(tmp_path / "flipped.ckpt"):
            count += 1
        else:
            found = read(tmp_path / "flipped.ckpt")
            assert all(equal(found[part], whole[part]) for part in whole)
    assert count > len(places) / 2


OPTIMIZERS = ["Adadelta", "Adafactor", "Adagrad", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_with_the_state_of_every_optimizer(train, backbone_folder, tmp_path, name):
    def task():
        build = functools.partial(getattr(torch.optim, name), lr=1e-3)
        return SequenceClassification(backbone_folder("bert"), LoRA(rank=2, target_modules=["query"]), optimizer=build)

    trainer = train(None, task=task(), max_steps=1, limit_train_batches=2)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    (before,) = read(tmp_path / "one.ckpt")["optimizer_states"]
    after = []
    look = pl.callbacks.LambdaCallback(
        on_train_start=lambda trainer, _: after.append(copy.deepcopy(trainer.optimizers[0].state_dict()))
    )
    train(None, look, task=task(), max_steps=2, limit_train_batches=2, ckpt_path=tmp_path / "one.ckpt")
    assert equal(dict(after[0]["state"]), before["state"])


def test_a_run_goes_on_with_the_state_of_callbacks(train, tmp_path):
    def callbacks():
        best = ModelCheckpoint(tmp_path / "best", monitor="val/loss", save_top_k=2, save_last=True)
        monitors = [LearningRateMonitor(), SpectralMonitor(), EMAWeightAveraging()]
        return [Timer(), EarlyStopping("val/loss", patience=5), best, *monitors]

    first, second = callbacks(), callbacks()
    train(LoRA(rank=2), *first, max_epochs=1)
    train(LoRA(rank=2), *second, max_epochs=1, ckpt_path=tmp_path / "best" / "last.ckpt")
    assert second[1].best_score == first[1].best_score
    assert second[2].best_k_models == first[2].best_k_models


def test_a_trainer_reads_other_modules_checkpoints_as_before(train, tmp_path):
    trainer = train(LoRA(rank=2), max_steps=1)
    other = pl.Trainer(max_steps=1, logger=False, accelerator="cpu", enable_checkpointing=False)
    other.fit(BoringModel())
    other.save_checkpoint(tmp_path / "other.ckpt")
    assert trainer.validate(BoringModel(), ckpt_path=tmp_path / "other.ckpt")


def test_load_from_checkpoint_builds_what_was_trained_with_what_is_given_in_its_place(good, backbone_folder, tmp_path):
    moved = shutil.copytree(backbone_folder("bert"), tmp_path / "moved")
    first, second = Task.load_from_checkpoint(good), SequenceClassification.load_from_checkpoint(good, backbone=moved)
    assert type(first) is SequenceClassification
    assert first.method == second.method == LoRA(rank=2)
    assert second.backbone == moved
    assert equal(dict(first.state_dict()), dict(second.state_dict()))
    with pytest.raises(InputError, match="is of the task SequenceClassification"):
        CausalLM.load_from_checkpoint(good)
