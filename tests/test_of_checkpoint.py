"""Updates of checkpoints: those of the trained model to the bit, of the backbone no more than is needed."""

import dataclasses
import shutil

import pytest
import torch
from crossing import crossed
from stored import TASKS, store, task_of
from test_methods import BOTTLENECKS, METHODS

from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import FullFineTuning, LoRA, MoRA
from lit_spectral.updates import of_checkpoint as module
from lit_spectral.updates.of_model import of_model
from lit_spectral.updates.sources import read

METHODS = {name: method for name, method in METHODS.items() if "tuning" not in name and name not in BOTTLENECKS}
# Whose ΔW is made of W₀ too.
NEEDS_WEIGHTS = {"HiRA truncated", "HiRA neighbours", "DoRA", "AdaLoRA", "FourierFT"}
NEEDS_FILES = {"FullFineTuning"}


def bare(folder, place):
    """A copy of a backbone's folder in which nothing but its config is left."""
    place.mkdir()
    shutil.copyfile(f"{folder}/config.json", place / "config.json")
    return str(place)


def assert_same(found, expected):
    assert found.changes.keys() == expected.changes.keys()
    for path, delta in expected.changes.items():
        for one, other in zip(found.changes[path].tensors(), delta.tensors(), strict=True):
            assert torch.equal(one, other), path
        assert type(found.changes[path].factors) is type(delta.factors)
    assert found.whole.keys() == expected.whole.keys()
    assert all(torch.equal(found.whole[name], tensor) for name, tensor in expected.whole.items())
    assert found.digest == expected.digest


@pytest.fixture
def unloaded(monkeypatch):
    """No backbone may be loaded."""

    def refuse(*given):
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(module, "load", refuse)


def loadable(name, task):
    return not (name == "BitFit" and task in {"classes, Llama", "next, Llama"})  # which have no biases


# One of each kind of ΔW in all tasks.
@pytest.mark.parametrize(("name", "task"), crossed(METHODS, TASKS, loadable, also=["FCLoRA", "HiRA truncated"]))
def test_it_is_that_of_the_loaded_model_to_the_bit(backbone_folder, tmp_path, monkeypatch, name, task):
    trained = task_of(task, METHODS[name], backbone_folder)
    path = store(trained, tmp_path / "a.ckpt")
    loaded = load(path)
    expected = of_model(loaded.model, loaded.backbone, loaded.backbone_digest)
    given = [] if name in NEEDS_WEIGHTS | NEEDS_FILES else [bare(trained.backbone, tmp_path / "bare")]
    found = read(path, *given)
    assert_same(found, expected)
    assert {key: found.origin[key] for key in expected.origin} == expected.origin
    assert found.origin["method"]["name"] == type(trained.method).__name__


def test_full_fine_tuning_reads_the_backbone_from_its_files(backbone_folder, tmp_path, unloaded):
    read(store(task_of("classes, BERT", FullFineTuning(), backbone_folder), tmp_path / "a.ckpt"))


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_of_a_backbone_in_another_dtype(backbone_folder, tmp_path, dtype):
    for method in (LoRA(rank=2), FullFineTuning()):
        path = store(task_of("next, GPT-2", method, backbone_folder, dtype=dtype), tmp_path / "a.ckpt")
        loaded = load(path)
        assert_same(read(path), of_model(loaded.model, loaded.backbone, loaded.backbone_digest))


def test_of_full_fine_tuning_another_backbone_is_refused(backbone_folder, tmp_path):
    path = store(task_of("next, GPT-2", FullFineTuning(), backbone_folder), tmp_path / "a.ckpt")
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(backbone_folder("gpt2"))
    other.transformer.h[0].attn.c_attn.weight.data.mul_(1.1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"was trained on backbone .*, whose weights differ"):
        read(path, str(tmp_path / "other"))


class Doubled(LoRA):
    """A method of the user's own."""

    def build(self, site):
        adapter = super().build(site)
        adapter.scale = float(site.weight.norm())
        return adapter


def test_a_method_of_the_users_own_may_need_the_weights(backbone_folder, tmp_path):
    trained = task_of("classes, BERT", Doubled(rank=2), backbone_folder)
    assert_same(read(store(trained, tmp_path / "a.ckpt")), of_model(trained.model, "", trained.backbone_digest))


def changed(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    from lit_spectral.checkpoint_file import tensor_digests

    content["lit_spectral"]["digests"] = tensor_digests(content)
    torch.save(content, path)
    return path


def without(ending):
    def change(content):
        name = next(name for name in content["state_dict"] if name.endswith(ending))
        del content["state_dict"][name]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(".left"), "does not fit the model .* missing: .*left"),
        (lambda content: content["state_dict"].update({"model.bert.nowhere.left": torch.ones(3)}), "unexpected: "),
        (lambda content: content["lit_spectral"]["method"].update(rank=3), "of another shape: "),
        (lambda content: content["lit_spectral"]["method"].update(name="Nobody"), "it is of the method Nobody"),
        (lambda content: content["lit_spectral"].update(task="Nothing"), "it is of the task Nothing"),
    ],
    ids=["a tensor lacks", "one too many", "another rank", "another method", "another task"],
)
def test_what_does_not_belong_together_is_refused(backbone_folder, tmp_path, change, said):
    path = store(task_of("classes, BERT", LoRA(rank=2), backbone_folder), tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=said):
        read(changed(path, change))


def test_a_backbone_that_has_gone_is_told(backbone_folder, tmp_path):
    path = store(task_of("classes, BERT", LoRA(rank=2), backbone_folder), tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="there is no folder /nowhere"):
        read(path, "/nowhere")


def test_where_it_came_from_is_told(backbone_folder, tmp_path):
    method = MoRA(rank=2)
    path = store(task_of("next, GPT-2", method, backbone_folder), tmp_path / "a.ckpt")
    origin = read(path).origin
    assert origin["method"] == {"name": "MoRA", **dataclasses.asdict(method)}
    assert (origin["source"], origin["steps"], origin["dtype"]) == (path, 0, "float32")
