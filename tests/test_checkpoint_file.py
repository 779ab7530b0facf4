"""Checkpoint files: a damaged one, or another's, is one line."""

import copy
import errno
import functools
import math
import pickle
import random
import shutil
import tempfile
import zipfile
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from checkpoint_ways import damage, enter, good, one_line, trained  # noqa: F401 (fixtures)
from crossing import crossed
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.demos.boring_classes import BoringModel
from lit_spectral.callbacks import SpectralMonitor

from lit_spectral.checkpoint_file import read, tensor_digests
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA
from lit_spectral.tasks import CausalLM, SequenceClassification, Task

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


@pytest.mark.parametrize(
    ("kind", "way"), crossed(BAD, ["fit", "validate", "load", "load_from_checkpoint of data"], also=["missing", "text"])
)
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
    "no seed": (lambda content: content["lit_spectral"].update(seed="x"), "seed is not what fit"),
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


class Save(pl.Callback):
    """Saves at the end of every epoch, as a checkpoint callback does; the second time there is no room."""

    def __init__(self, path, monkeypatch):
        self.path, self.patch = path, monkeypatch

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)
        self.whole = self.path.read_bytes()
        self.patch.setattr(torch, "save", self.fill)

    @staticmethod
    def fill(content, place):
        Path(place).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_can_not_be_saved_whole_leaves_the_one_before(train, tmp_path, monkeypatch):
    """Nor is any other place written to, such as TMPDIR, from which a file would be copied."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    (tmp_path / "kept").mkdir()
    save = Save(tmp_path / "kept" / "last.ckpt", monkeypatch)
    with pytest.raises(OSError, match="No space"):
        train(LoRA(rank=2), save)
    assert save.path.read_bytes() == save.whole
    assert [path.name for path in save.path.parent.iterdir()] == ["last.ckpt"]
