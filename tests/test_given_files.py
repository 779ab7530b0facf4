"""Backbones and data that were given: no code in their files is run, whatever their names."""

import io
import json
import os
import pickle
import shutil
from contextlib import suppress

import numpy as np
import pytest
import torch
from lit_spectral.datamodules.files import read_rows, read_split
from safetensors.torch import load_file

from lit_spectral import backbones
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA
from lit_spectral.tasks import SequenceClassification


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def torch_file(content, new=True):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def numpy_file(content, save=np.save):
    file = io.BytesIO()
    save(file, np.array([content], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.fixture
def copied(backbone_folder, tmp_path):
    """A copy of the tiny BERT's folder without its weights, and these."""
    folder = shutil.copytree(backbone_folder("bert"), tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return folder, weights


def configure(folder):
    SequenceClassification(str(folder), LoRA(rank=4), num_labels=2).configure_model()


def one_line(error):
    message = str(error.value)
    return len(message.splitlines()) == 1 and "backbone: " in message


BAD = {
    "code in an entry": lambda weights, evil: torch_file(weights | {"evil": evil}),
    "code alone": lambda weights, evil: torch_file(evil),
    "code in the old format": lambda weights, evil: torch_file(weights | {"evil": evil}, new=False),
    "a pickle": lambda weights, evil: pickle.dumps(evil),
    "a list": lambda weights, evil: torch_file([1, 2]),
    "half a file": lambda weights, evil: torch_file(weights)[:5000],
    "nothing": lambda weights, evil: b"",
    "garbage": lambda weights, evil: b"\x80\x04garbage" * 100,
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_backbones_torch_files_are_not_run_and_refused_in_one_line(copied, marker, kind, sharded):
    folder, weights = copied
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    (folder / name).write_bytes(BAD[kind](weights, Hostile(marker)))
    if sharded:
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError) as error:
        configure(folder)
    assert one_line(error)
    assert not marker.exists()


def test_other_files_beside_a_backbone_are_not_run(copied, marker):
    folder, weights = copied
    (folder / "pytorch_model.bin").write_bytes(torch_file(weights))
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "vocab.pkl", "tf_model.h5"):
        (folder / name).write_bytes(torch_file(Hostile(marker)))
    configure(folder)
    assert not marker.exists()


def test_the_adapter_in_a_backbones_folder_is_not_run(copied, marker):
    folder, weights = copied
    (folder / "pytorch_model.bin").write_bytes(torch_file(weights))
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "target_modules": ["query"], "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.bin").write_bytes(torch_file(Hostile(marker)))
    with pytest.raises(InputError) as error:
        configure(folder)
    assert one_line(error)
    assert not marker.exists()


def test_code_beside_a_backbone_is_neither_run_nor_asked_about(copied, marker, monkeypatch):
    folder, weights = copied
    (folder / "pytorch_model.bin").write_bytes(torch_file(weights))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    settings = json.loads((folder / "config.json").read_text()) | {"model_type": "evil"}
    settings["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    with pytest.raises(InputError) as error:
        configure(folder)
    assert one_line(error)
    assert not marker.exists()
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Words", None]}}))
    with suppress(InputError):  # transformers may make do with the tokens alone
        backbones.load_tokenizer(str(folder))
    assert not marker.exists()


DATA = {
    "npy": lambda evil: numpy_file(evil),
    "npz": lambda evil: numpy_file(evil, lambda file, array, allow_pickle: np.savez(file, array)),
    "pickle": lambda evil: pickle.dumps(evil),
    "torch": lambda evil: torch_file(evil),
}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv", "pkl", "npy", "npz", "pt"])
@pytest.mark.parametrize("kind", DATA)
def test_pickles_among_data_are_refused_whatever_their_names(tmp_path, marker, kind, suffix):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"train.{suffix}").write_bytes(DATA[kind](Hostile(marker)))
    for look in (lambda: read_split(str(folder), "train"), lambda: read_rows(str(folder / f"train.{suffix}"))):
        with pytest.raises(InputError) as error:
            look()
        assert len(str(error.value).splitlines()) == 1
    assert not marker.exists()
