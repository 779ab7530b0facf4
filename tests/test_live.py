"""`lit_spectral.load`: models of transformers with adapters to switch, as whoever has trained them would use them."""

import copy
import subprocess
import sys

import lightning.pytorch as pl
import peft
import pytest
import torch
import transformers
from exporting import HEADS, LOW_RANK, OTHERS, adapted, assert_equal, base, logits, update_of  # noqa: F401 (a fixture)
from test_methods import OURS, PEFT

import lit_spectral
from lit_spectral.adapters import fold, unfold
from lit_spectral.adapters.linear import is_quantised
from lit_spectral.errors import InputError
from lit_spectral.methods import Peft
from lit_spectral.tasks import CausalLM, QuestionAnswering, SequenceClassification
from lit_spectral.updates import Update, export_command
from lit_spectral.updates.sources import of_model, read

METHODS = LOW_RANK | OTHERS
WITH_CHANGES = OURS | {name: PEFT[name] for name in ("DoRA", "FourierFT")}
WITH_CHANGES["IA3"] = Peft(config={"peft_type": "IA3", "target_modules": ["value"], "feedforward_modules": []})


@pytest.fixture
def given(base):
    """An update of a model's name, by a method, and the logits of the model that it was taken of."""

    def make(name="BERT", method="LoRA", seed=1, **other):
        model, whole = adapted(name, METHODS[method], seed)
        update = update_of(model, whole, base(name))
        labels = dict(model.config.id2label)
        origin = {**update.origin, "config_labels": labels, **other}
        return Update(update.changes, update.whole, update.backbone, "", origin), logits(model)

    return make


def same(one, other):
    assert one.changes.keys() == other.changes.keys()
    for path, delta in one.changes.items():
        assert all(map(torch.equal, delta.tensors(), other.changes[path].tensors())), path
    assert one.whole.keys() == other.whole.keys()
    assert all(torch.equal(tensor, other.whole[name]) for name, tensor in one.whole.items())
    assert one.origin["architecture"] == other.origin["architecture"]


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in HEADS for method in METHODS])
def test_of_an_update_it_is_the_model_that_it_was_trained_in(given, name, method):
    update, expected = given(name, method)
    model = lit_spectral.load(update)
    assert type(model).__name__ == update.origin["architecture"]
    assert not model.training
    assert_equal(logits(model), expected)
    same(of_model(model), update)


TASKS = {
    "bert": (SequenceClassification, {"num_labels": 3, "metrics": ["accuracy"], "label_names": ["no", "yes", "so"]}),
    "roberta": (QuestionAnswering, {}),
    "llama": (CausalLM, {}),
    "gpt2": (SequenceClassification, {"num_labels": 1, "metrics": ["pearson"]}),
}


ROWS = {"input_ids": torch.arange(5, 37).view(4, 8), "attention_mask": torch.ones(4, 8, dtype=torch.long)}


@pytest.fixture
def moved(backbone_folder):
    """A task whose adapters and head have been moved from where they start."""

    def make(method, architecture="bert"):
        torch.manual_seed(0)
        kind, settings = TASKS[architecture]
        task = kind(backbone_folder(architecture), method, **settings)
        task.configure_model()
        move(task.model, 0.05)
        return task.eval()

    return make


@torch.no_grad()
def move(model, size):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn_like(parameter))


@pytest.fixture
def checkpoint(moved, tmp_path):
    """A checkpoint, and the task that wrote it."""

    def make(method):
        task = moved(method)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        batch = ROWS | {"labels": torch.ones(4, dtype=torch.long)}
        trainer.fit(task, torch.utils.data.DataLoader([batch], batch_size=None))
        trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
        return tmp_path / "last.ckpt", task.eval()

    return make


@torch.no_grad()
def outputs(model):
    return torch.cat([tensor.flatten() for tensor in model(**ROWS).values() if isinstance(tensor, torch.Tensor)])


@pytest.mark.parametrize("method", WITH_CHANGES.values(), ids=WITH_CHANGES)
def test_of_a_checkpoint_it_computes_what_the_task_does(checkpoint, method):
    source, task = checkpoint(method)
    model = lit_spectral.load(source)
    assert_equal(outputs(model), outputs(task.model))
    assert model.config.id2label == {0: "no", 1: "yes", 2: "so"}
    same(of_model(model), read(str(source)))


@pytest.mark.parametrize("architecture", TASKS)
def test_of_each_task_it_has_the_head(moved, architecture):
    task = moved(LOW_RANK["FCLoRA"], architecture)
    model = lit_spectral.load(of_model(task.model, task.backbone, task.backbone_digest))
    assert type(model) is type(task.model)
    assert model.config.num_labels == task.model.config.num_labels
    assert_equal(outputs(model), outputs(task.model))


THEIRS = {
    "LoRA": {"r": 4},
    "LoRA with biases": {"r": 4, "bias": "all"},
    "DoRA": {"r": 4, "use_dora": True},
    "DoRA with biases": {"r": 4, "use_dora": True, "bias": "all"},
    "LoRA with biases of its own": {"r": 4, "lora_bias": True},
    "LoHa": {"peft_type": "LOHA", "r": 3},
    "IA3, which scales biases": {"peft_type": "IA3", "feedforward_modules": []},
}
KINDS = {
    "bert, 3 classes": ("whole", "SEQ_CLS", "SequenceClassification", ["query", "value"], {"num_labels": 3}),
    "bert, tokens": ("whole", "TOKEN_CLS", "TokenClassification", ["query"], {"num_labels": 5}),
    "bert, features": ("whole", "FEATURE_EXTRACTION", "", ["query"], {}),
    "bert, no task": ("whole", None, "MaskedLM", ["query"], {}),
    "gpt2": ("gpt2", "CAUSAL_LM", "CausalLM", ["c_attn"], {}),
    "llama": ("llama", "CAUSAL_LM", "CausalLM", ["q_proj", "down_proj"], {}),
}


@pytest.fixture
def theirs(backbone_folder, tmp_path):
    """A folder that peft alone wrote, and its model."""
    # As those of BERT's authors, with a pooler, which peft doesn't take to be a part of the head.
    config = transformers.AutoConfig.from_pretrained(backbone_folder("bert"))
    transformers.BertForPreTraining(config).save_pretrained(tmp_path / "whole")

    def make(kind, **settings):
        torch.manual_seed(1)
        architecture, task, auto, targets, how = KINDS[kind]
        auto = getattr(transformers, f"AutoModelFor{auto}" if auto else "AutoModel")
        model = auto.from_pretrained(
            tmp_path / "whole" if architecture == "whole" else backbone_folder(architecture), **how
        )
        asked = {"task_type": task, "target_modules": targets, "peft_type": "LORA", **settings}
        config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[asked.pop("peft_type")](**asked)
        wrapped = peft.get_peft_model(model, config)
        move(wrapped, 0.1)
        wrapped.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs", wrapped.eval()

    return make


@pytest.mark.parametrize(
    ("kind", "settings"),
    [*((kind, {"r": 4}) for kind in KINDS), *(("bert, 3 classes", each) for each in THEIRS.values())],
    ids=str,
)
def test_of_pefts_folder_it_computes_what_peft_does(theirs, kind, settings):
    folder, wrapped = theirs(kind, **settings)
    model = lit_spectral.load(folder)
    assert type(model) is type(wrapped.get_base_model())
    expected, found = wrapped(**ROWS), model(**ROWS)
    name = "logits" if "logits" in found else "last_hidden_state"
    assert_equal(found[name], expected[name])
    same(of_model(model), read(str(folder)))


APART = {
    "an embedding's ΔW": ({"target_modules": ["q_proj", "embed_tokens"]}, "changes model.embed_tokens too"),
    "an output that the backbone ties": (
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "lm_head.weight was trained, and model.embed_tokens.weight not, which are one tensor",
    ),
}


@pytest.mark.parametrize(("settings", "message"), APART.values(), ids=APART)
@pytest.mark.filterwarnings("ignore")
def test_of_pefts_folder_what_an_update_cant_hold_is_refused(base, tmp_path, settings, message):
    backbone = transformers.AutoModelForCausalLM.from_pretrained(base("Llama, tied"))
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, **settings)
    peft.get_peft_model(backbone, config).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(InputError, match=message):
        lit_spectral.load(tmp_path)


def test_of_fine_tuned_weights_it_computes_what_they_do(backbone_folder, tmp_path):
    folder = backbone_folder("bert")
    tuned = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    tuned.config.id2label = {0: "a", 1: "b", 2: "c"}
    with torch.no_grad():
        tuned.bert.encoder.layer[0].output.dense.weight += 0.1
    tuned.save_pretrained(tmp_path)
    model = lit_spectral.load(tmp_path, folder)
    assert_equal(logits(model), logits(tuned))
    assert model.config.id2label == tuned.config.id2label
    model.adapters.add(tmp_path, "again")


# What a user does with it.


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
    (found,) = pipe("the cat sat", top_k=None, function_to_apply="softmax") and [pipe("the cat sat", top_k=None)]
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
