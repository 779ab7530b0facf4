import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA
from lit_spectral.tasks import SequenceClassification


@pytest.fixture
def copied(backbone_folder, tmp_path):
    """A copy of the tiny BERT's folder, to change."""
    return shutil.copytree(backbone_folder("bert"), tmp_path / "bert")


def configured(folder, num_labels=2):
    task = SequenceClassification(str(folder), LoRA(rank=4), num_labels=num_labels)
    task.configure_model()
    return task


def test_a_head_for_other_classes_is_replaced(copied, tmp_path):
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(copied, num_labels=3)
    classifier.save_pretrained(tmp_path / "three")
    head = configured(tmp_path / "three").model.classifier
    assert head.weight.shape[0] == 2
    assert head.weight.requires_grad


def test_weights_of_another_encoder_are_refused(copied):
    path = copied / "model.safetensors"
    renamed = {name.replace("bert.", "other."): tensor for name, tensor in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack \d+ weights of a bert encoder"):
        configured(copied)


def test_damaged_weights_are_named(copied):
    (copied / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="can't be loaded"):
        configured(copied)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        configured(tmp_path)


def test_a_pooler_that_the_files_lack_is_trained(copied):
    pooler = configured(copied).model.bert.pooler  # a masked-language checkpoint has none
    assert all(p.requires_grad for p in pooler.parameters())


def test_backbones_that_differ_in_one_inner_matrix_are_told_apart(copied):
    before = configured(copied).backbone_digest
    weights = load_file(copied / "model.safetensors")
    weights["bert.encoder.layer.0.attention.self.query.weight"] += 0.01 * torch.ones(1)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert configured(copied).backbone_digest != before
