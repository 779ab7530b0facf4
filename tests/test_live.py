"""`lit_spectral.load`: models of transformers with adapters to switch, as whoever has trained them would use them."""

import copy
import subprocess
import sys

import pytest
import torch
import transformers
from exporting import LOW_RANK, adapted, assert_equal, base, logits  # noqa: F401 (a fixture)
from live import METHODS, checkpoint, given, moved, outputs, theirs  # noqa: F401 (fixtures)

import lit_spectral
from lit_spectral.adapters import fold, unfold
from lit_spectral.adapters.linear import is_quantised
from lit_spectral.errors import InputError
from lit_spectral.tasks import SequenceClassification
from lit_spectral.updates import Update, export_command
from lit_spectral.updates.sources import read


@pytest.fixture
def model(given):
    """With two adapters of unlike methods, ranks and targets; its names of classes are of the first."""
    first, _ = given("BERT", "HiRALoRA", config_labels={0: "no", 1: "yes"})
    loaded = lit_spectral.load(first, name="first")
    second, _ = given("BERT", "LoRA", seed=2, config_labels={0: "left", 1: "right"})
    kept = dict(list(second.changes.items())[3:7])
    loaded.adapters.add(Update(kept, second.whole, second.backbone, "", second.origin), "second")
    return loaded


def test_adapters_are_switched_to_the_bit(model, base):
    first = logits(model)
    model.adapters.use("second")
    second = logits(model)
    assert not torch.equal(first, second)
    model.adapters.use("first")
    assert torch.equal(logits(model), first)
    model.adapters.disable()
    plain = transformers.BertForSequenceClassification.from_pretrained(base("BERT"))
    assert torch.equal(logits(model), logits(plain))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    model.adapters.enable()
    assert torch.equal(logits(model), first)
    with model.adapters.disabled():
        model.adapters.use("second")
        assert torch.equal(logits(model), second)
    assert torch.equal(logits(model), first)


def test_it_says_what_there_is_and_what_is_on(model):
    adapters = model.adapters
    assert (adapters.names, adapters.active) == (["first", "second"], "first")
    adapters.use("second")
    adapters.disable()
    assert adapters.active is None
    with adapters.disabled():
        assert adapters.active is None
    assert adapters.active is None
    adapters.enable()
    assert adapters.active == "second"


def test_names_of_classes_are_those_of_what_is_on(model):
    assert model.config.id2label == {0: "no", 1: "yes"}
    model.adapters.use("second")
    assert model.config.label2id == {"left": 0, "right": 1}
    model.adapters.disable()
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_a_scale_is_the_adapters_own(model):
    first = logits(model)
    model.adapters.scale(0.5)
    half = logits(model)
    model.adapters.use("second")
    second = logits(model)
    model.adapters.scale(0.0)
    assert not torch.equal(logits(model), second)
    model.adapters.use("first")
    assert torch.equal(logits(model), half)
    model.adapters.scale(1.0)
    assert torch.equal(logits(model), first)


def test_disabled_within_a_failure_it_comes_back(model):
    first = logits(model)
    with pytest.raises(ZeroDivisionError), model.adapters.disabled():
        raise ZeroDivisionError
    assert torch.equal(logits(model), first)


def other_head(update):
    return Update(update.changes, {"classifier.weight": torch.zeros(3, 32), "classifier.bias": torch.zeros(3)})


WRONG = {
    "a name that is taken": (lambda m, u: m.adapters.add(u, "first"), "there is an adapter first already"),
    "a name that there isn't": (lambda m, u: m.adapters.use("frist"), "there is no adapter frist; did you mean first"),
    "a head of another shape": (
        lambda m, u: m.adapters.add(other_head(u), "third"),
        "third: classifier.weight is 3 x 32 in the adapter and 2 x 32 in the model",
    ),
    "nothing there": (lambda m, u: m.adapters.add("/nowhere", "third"), "/nowhere: there is nothing there"),
    "not finite": (lambda m, u: m.adapters.add(u.scaled(float("nan")), "third"), "is not finite"),
    "no number": (lambda m, u: m.adapters.scale(float("nan")), "scale is a finite number"),
}


@pytest.mark.parametrize(("act", "message"), WRONG.values(), ids=WRONG)
def test_what_cant_be_is_one_line_and_changes_nothing(model, given, act, message):
    before = logits(model)
    with pytest.raises(InputError, match=message) as caught:
        act(model, given()[0])
    assert "\n" not in str(caught.value)
    assert model.adapters.names == ["first", "second"]
    assert torch.equal(logits(model), before)


def test_an_adapter_without_a_head_is_refused_where_the_backbone_has_none(backbone_folder, checkpoint):
    source, _ = checkpoint(LOW_RANK["LoRA"])
    update = read(str(source))
    headless = Update(update.changes, {}, update.backbone, update.digest, update.origin)
    with pytest.raises(InputError, match=r"neither the adapter nor its backbone has bert\.pooler\.dense\.bias"):
        lit_spectral.load(headless)
    model = lit_spectral.load(source)
    with pytest.raises(InputError, match="b: neither the adapter nor its backbone has"):
        model.adapters.add(headless, "b")


def test_an_adapter_of_other_weights_is_refused(checkpoint, backbone_folder, tmp_path):
    source, _ = checkpoint(LOW_RANK["LoRA"])
    other = transformers.AutoModelForMaskedLM.from_pretrained(backbone_folder("bert"))
    with torch.no_grad():
        other.bert.embeddings.LayerNorm.weight += 1
    other.save_pretrained(tmp_path / "other")
    update = read(str(source))
    with pytest.raises(InputError, match="trained on a backbone with other weights"):
        lit_spectral.load(update, tmp_path / "other")


def test_without_a_backbone_it_asks_for_one(given):
    update, _ = given()
    with pytest.raises(InputError, match="give backbone, a folder or a hub id"):
        lit_spectral.load(Update(update.changes))


def test_it_generates_as_the_model_that_was_trained(given):
    update, _ = given("Llama", "FCLoRA")
    trained, _ = adapted("Llama", METHODS["FCLoRA"])
    model = lit_spectral.load(update)
    prompt = torch.tensor([[2, 9, 30, 17]])
    how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = model.generate(prompt, **how)
    assert torch.equal(found, trained.generate(prompt, **how))
    assert torch.equal(found, model.generate(prompt, use_cache=False, **how))


def test_it_goes_into_a_pipeline(checkpoint, backbone_folder):
    model = lit_spectral.load(checkpoint(LOW_RANK["LoRA"])[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(backbone_folder("bert"))
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    found = pipe("the cat sat", top_k=None, function_to_apply="softmax")
    with torch.no_grad():
        scores = model(**tokenizer("the cat sat", return_tensors="pt")).logits[0].softmax(-1)
    assert {each["label"]: pytest.approx(each["score"]) for each in found} == dict(
        zip(["no", "yes", "so"], scores.tolist(), strict=True)
    )


def test_it_is_not_saved_as_what_nobody_can_load(model, tmp_path):
    with pytest.raises(InputError, match="lit-spectral export SOURCE --to merged --output FOLDER"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copy_is_switched_by_itself(model):
    first = logits(model)
    other = copy.deepcopy(model)
    other.adapters.use("second")
    assert torch.equal(logits(model), first)
    assert model.adapters.active == "first"
    with pytest.raises(InputError, match="save_pretrained"):
        other.save_pretrained("out")


def test_folded_it_has_to_be_unfolded_before_it_is_switched(model):
    first = logits(model)
    fold(model)
    with pytest.raises(InputError, match="unfold the model first"):
        model.adapters.use("second")
    assert model.adapters.active == "first"
    unfold(model)
    assert torch.equal(logits(model), first)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_codes_it_computes_what_the_task_does_on_them(backbone_folder, checkpoint, kind):
    source, task = checkpoint(METHODS["HiRA"])
    coded = SequenceClassification.load_from_checkpoint(source, quantization=kind).eval()
    model = lit_spectral.load(source, dtype="float32", quantization=kind)
    assert any(map(is_quantised, model.modules()))
    assert (outputs(model) - outputs(coded.model)).norm() <= 1e-4 * outputs(coded.model).norm()
    model.adapters.disable()
    assert not torch.equal(outputs(model), outputs(task.model))


def test_what_is_exported_is_loaded_again(checkpoint, tmp_path):
    source, task = checkpoint(LOW_RANK["FCLoRA"])
    export_command.run([str(source), "--to", "peft", "--output", str(tmp_path / "out")])
    model = lit_spectral.load(tmp_path / "out")
    assert_equal(outputs(model), outputs(task.model))
    assert model.config.id2label == {0: "no", 1: "yes", 2: "so"}


@pytest.mark.slow
def test_neither_torch_nor_lightning_are_imported_before_they_are_needed(theirs):
    folder, _ = theirs("bert, 3 classes", r=4)
    script = (
        "import sys, lit_spectral\n"
        "assert 'torch' not in sys.modules\n"
        f"lit_spectral.load({str(folder)!r})\n"
        "assert 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_there_is_nothing_else_by_such_a_name():
    with pytest.raises(AttributeError, match="'lit_spectral' has no attribute 'laod'"):
        lit_spectral.laod  # noqa: B018
