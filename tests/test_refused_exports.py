"""What is not exported, or not in that form: one line, and nothing is left behind."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exporting import OTHERS, adapted, base, decoder_update, update, update_of  # noqa: F401 (fixtures)
from safetensors.torch import load_file, save_file

from lit_spectral.errors import InputError
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.exports import write

pytestmark = pytest.mark.filterwarnings("ignore")


def refused(update, tmp_path, to="peft", **given):
    with pytest.raises(InputError) as refusal:
        write(update, tmp_path / "out", to, **given)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.part").exists()
    return str(refusal.value)


def test_a_change_that_is_not_thin_is_refused_by_peft_with_both_remedies(base, tmp_path):
    line = refused(update_of(*adapted("Llama", OTHERS["HiRA"]), base("Llama")), tmp_path)
    assert "--to merged" in line
    assert "--rank" in line


@pytest.mark.parametrize("consumer", ["vllm", "llama.cpp"])
def test_a_norm_is_nothing_for_them(consumer, base, tmp_path):
    update = decoder_update(base)
    whole = {"model.norm.weight": torch.ones(32)}
    line = refused(Update(update.changes, whole, update.backbone), tmp_path, consumer=consumer)
    assert "model.norm" in line


def test_vllm_takes_a_classifier_and_llama_cpp_does_not(update, tmp_path):
    assert "classifier" in refused(update, tmp_path, consumer="llama.cpp")
    write(update, tmp_path / "out", "peft", consumer="vllm")


def test_a_rank_above_vllms_is_refused(base, tmp_path):
    update = decoder_update(base)
    pair = Pair(torch.ones(32, 513), torch.ones(513, 32))
    first = next(iter(update.changes))
    line = refused(Update({first: Delta(pair)}, backbone=update.backbone), tmp_path, consumer="vllm")
    assert "512" in line


def test_an_adapter_of_another_backbone_is_refused_by_name_and_by_shape(update, base, tmp_path):
    other = Update(update.changes, update.whole, str(base("Llama")))
    assert "no linear map of LlamaForCausalLM" in refused(other, tmp_path)
    path = next(iter(update.changes))
    wide = Update({path: Delta(Pair(torch.ones(7, 1), torch.ones(1, 32)))}, backbone=update.backbone)
    assert "7 x 32" in refused(wide, tmp_path, "merged")


def test_a_folder_with_something_in_it_is_left_alone(update, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        write(update, tmp_path / "out", "merged")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["file"]


def test_without_room_nothing_is_left(update, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_spectral.updates.merged.save_file", full)
    assert "No space left on device" in refused(update, tmp_path, "merged")


def test_without_room_there_is_no_part_of_a_checkpoint(base, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in refused(decoder_update(base), tmp_path, "checkpoint")


def copy_of(folder, to):
    to.mkdir()
    for file in Path(folder).iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_a_damaged_file_and_a_pickle_are_refused(update, tmp_path):
    damaged = copy_of(update.backbone, tmp_path / "damaged")
    os.truncate(damaged / "model.safetensors", 2000)
    assert "undamaged" in refused(Update(update.changes, backbone=str(damaged)), tmp_path, "merged")
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    assert "pickles" in refused(Update(update.changes, backbone=str(damaged)), tmp_path, "merged")


def test_an_index_of_files_elsewhere_is_refused(update, tmp_path):
    folder = copy_of(update.backbone, tmp_path / "elsewhere")
    (folder / "sub").mkdir()
    (folder / "model.safetensors").rename(folder / "sub" / "model.safetensors")
    index = {"weight_map": {"a": "sub/../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "which is not in its folder" in refused(replace(update, backbone=str(folder)), tmp_path, "merged")


def test_a_sum_that_float16_cannot_hold_is_refused(base, tmp_path):
    folder = base("Llama", torch.float16)
    path = "model.layers.0.self_attn.q_proj"
    huge = Update({path: Delta(Pair(torch.full((32, 1), 1e5), torch.ones(1, 32)))}, backbone=str(folder))
    assert path in refused(huge, tmp_path, "merged")


def test_weights_that_are_codes_are_refused(update, tmp_path):
    coded = copy_of(update.backbone, tmp_path / "coded")
    tensors = load_file(coded / "model.safetensors")
    key = f"{next(iter(update.changes))}.weight"
    save_file(tensors | {key: tensors[key].to(torch.int8)}, coded / "model.safetensors")
    assert "quantised" in refused(Update(update.changes, backbone=str(coded)), tmp_path, "merged")
