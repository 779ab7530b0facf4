"""What no adapter can lie on, or go on upon: one line that says why."""

import dataclasses
import os
import shutil

import pytest
import torch
import transformers
from on_top_of import EARLIER, bert, made, run, stacked  # noqa: F401 (fixtures)
from test_continue import fit  # noqa: F401 (a fixture)
from test_given import TASKS, checkpoint, data_of, folder_of, text  # noqa: F401 (fixtures)

from lit_spectral.checkpoint import load
from lit_spectral.checkpoint_file import tensor_digests
from lit_spectral.errors import InputError
from lit_spectral.methods import Given, LoRA
from lit_spectral.tasks import SequenceClassification
from lit_spectral.updates import Delta, Pair, Update
from lit_spectral.updates.beneath import check_beneath, put_beneath, to_saved
from lit_spectral.updates.exports import write
from lit_spectral.updates.sources import read

HERE = "model.method.on_top_of: "


def test_a_run_goes_on_upon_nothing_else(made, fit, tmp_path):
    source = shutil.copy(made(EARLIER[0])[0], tmp_path / "source.ckpt")
    method = LoRA(rank=4, on_top_of=str(source))
    half, plain = fit(method, "half")[2], fit(LoRA(rank=4), "plain")[2]
    with pytest.raises(
        InputError, match="lies on top of some of earlier ones, and the model's on top of none; give --m"
    ):
        fit(LoRA(rank=4), path=half)
    with pytest.raises(InputError, match="lies on top of none of earlier ones, and the model's on top of some"):
        fit(method, path=plain)
    shutil.copy(made(EARLIER[1])[0], source)
    with pytest.raises(InputError, match=r"lies on top of others than those that .*on_top_of names, as they are now"):
        fit(method, path=half)
    os.remove(source)
    with pytest.raises(InputError, match=rf"^{HERE}.*source.ckpt: there is nothing there"):
        fit(method, path=half)


def test_other_factors_of_the_same_change_are_no_other_change():
    delta = Delta(Pair(torch.randn(6, 2), torch.randn(2, 5)))
    turned = Delta(Pair(-delta.factors.left.flip(1), -delta.factors.right.flip(0)))
    check_beneath(to_saved(Update({"a": delta})), Update({"a": turned}))
    with pytest.raises(InputError, match="lies on top of others"):
        check_beneath(to_saved(Update({"a": delta})), Update({"a": turned.scaled(1.001)}))


def test_what_a_backbone_says_by_itself_is_not_taken_for_what_lies_on_it(checkpoint, backbone_folder):
    source = checkpoint(SequenceClassification, "llama", LoRA(rank=2))
    method = LoRA(rank=2, on_top_of=source, input_rank=1, input_text="self")
    task = SequenceClassification(backbone_folder("llama"), method, num_labels=2)
    with pytest.raises(InputError, match="self is said by the backbone alone here, not on top of on_top_of"):
        task.configure_model()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere: there is nothing there"),
        ("roberta", ".*whose weights differ"),
        ("decoder", ".*a.ckpt: .* is an encoder"),
        ("peft", ".*peft: bert.* is no linear map of this model, or one of another shape; give its own backbone"),
    ],
)
def test_what_nothing_can_lie_on_is_refused_in_one_line(
    made, fit, checkpoint, backbone_folder, tmp_path, source, message
):
    backbone = None
    if source == "roberta":
        source = checkpoint(SequenceClassification, "roberta", LoRA(rank=2))
    elif source == "decoder":
        source = checkpoint(*TASKS["CausalLM"], LoRA(rank=2))
    elif source == "peft":
        backbone, source = backbone_folder("roberta"), str(tmp_path / "peft")
        write(dataclasses.replace(read(made(EARLIER[0])[0]), digest=""), tmp_path / "peft", "peft")
    with pytest.raises(InputError, match=rf"^{HERE}{message}") as refusal:
        fit(LoRA(on_top_of=source), backbone=backbone)
    assert "\n" not in str(refusal.value)


def test_weights_that_can_not_hold_the_sum_are_refused(bert):
    model = transformers.AutoModelForMaskedLM.from_pretrained(bert, dtype=torch.float16)
    change = Delta(matrix=torch.full((32, 32), 7e4))
    with pytest.raises(InputError, match=r"key is beyond what torch.float16 holds; give --model.dtype float32"):
        put_beneath(model, Update({"bert.encoder.layer.0.attention.self.key": change}))
    with pytest.raises(InputError, match=r"decoder is tied to another module's, which would change too; merge them"):
        put_beneath(model, Update({"cls.predictions.decoder": Delta(matrix=torch.ones(64, 32))}))


def test_codes_can_hold_no_sum(made, bert):
    method = LoRA(on_top_of=made(EARLIER[0])[0])
    task = SequenceClassification(bert, method, num_labels=2, quantization="nf4")
    with pytest.raises(InputError, match=rf"^{HERE}the weight of bert.* is quantised, .*export --to merged"):
        task.configure_model()


def test_what_trains_nothing_lies_on_nothing(made):
    with pytest.raises(InputError, match="Given trains nothing, on top of others"):
        Given(source="x", on_top_of="y")


@pytest.mark.parametrize("spoil", [
    lambda part: part.pop("whole"),
    lambda part: part["changes"].update(x=3),
    lambda part: part["changes"].update({"x.left": torch.ones(3, 2), "x.right": torch.ones(3, 2)}),
    lambda part: part["changes"].update({"x.left": torch.ones(3, 2)}),
    lambda part: part["changes"].popitem(),
])  # fmt: skip
def test_a_part_that_is_none_is_refused(stacked, tmp_path, spoil):
    content = torch.load(stacked("LoRA")[2], weights_only=True)
    spoil(content["beneath"])
    content["lit_spectral"]["digests"] = tensor_digests(content)
    torch.save(content, tmp_path / "damaged.ckpt")
    with pytest.raises(InputError, match=r"damaged\.ckpt: what its adapter lies on is not as fit writes it") as refusal:
        load(tmp_path / "damaged.ckpt")
    assert "\n" not in str(refusal.value)


def test_a_tensor_that_is_damaged_is_told_by_its_digest(stacked, tmp_path):
    content = torch.load(stacked("LoRA")[2], weights_only=True)
    next(iter(content["beneath"]["changes"].values()))[0, 0] += 1
    torch.save(content, tmp_path / "damaged.ckpt")
    with pytest.raises(InputError, match=r"damaged\.ckpt: its beneath is damaged: the checksum"):
        load(tmp_path / "damaged.ckpt")
