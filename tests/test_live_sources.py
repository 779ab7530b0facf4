"""`lit_spectral.load`: whatever an adapter lies in, the model computes what it did where it was trained."""

import peft
import pytest
import torch
import transformers
from exporting import HEADS, LOW_RANK, assert_equal, base, logits  # noqa: F401 (a fixture)
from live import (  # noqa: F401 (fixtures)
    KINDS,
    METHODS,
    ROWS,
    TASKS,
    THEIRS,
    WITH_CHANGES,
    checkpoint,
    given,
    moved,
    outputs,
    same,
    theirs,
)

import lit_spectral
from lit_spectral.errors import InputError
from lit_spectral.updates.sources import of_model, read


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in HEADS for method in METHODS])
def test_of_an_update_it_is_the_model_that_it_was_trained_in(given, name, method):
    update, expected = given(name, method)
    model = lit_spectral.load(update)
    assert type(model).__name__ == update.origin["architecture"]
    assert not model.training
    assert_equal(logits(model), expected)
    same(of_model(model), update)


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
