"""A new adapter on top of frozen earlier ones: as if these had been merged into the backbone, which stays its own."""

import dataclasses
import shutil

import pytest
import torch
from on_top_of import EARLIER, adamw, bert, fit_on, made, run, stacked  # noqa: F401 (fixtures)
from resuming import Save
from test_continue import ROWS, changes, fit, inside, logits  # noqa: F401 (a fixture)
from test_given import TASKS, checkpoint, data_of, folder_of, outputs, retained, text  # noqa: F401 (fixtures)
from test_methods import BOTTLENECKS, QUICK, SHORT
from test_update_verbs import near

from lit_spectral import cli
from lit_spectral.adapters import trained_state
from lit_spectral.checkpoint import load, load_given
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, HiRA, LoRA, ProjLoRA
from lit_spectral.retention.base_model import base_model, original_weights
from lit_spectral.tasks import QuestionAnswering, SequenceClassification
from lit_spectral.updates.of_model import of_model
from lit_spectral.updates.sources import read

HERE = "model.method.on_top_of: "
NO_CHANGE = {"prompt tuning", "P-tuning", "prefix tuning", *BOTTLENECKS}  # of which there is no ΔW
NAMES = [
    pytest.param(name, marks=[] if name in QUICK | {"DoRA", "FullFineTuning"} else pytest.mark.slow) for name in SHORT
]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_that_on_the_merged_backbone(stacked, made, fit, name):
    one, seen, *_ = stacked(name)
    other, expected, _ = fit(SHORT[name], backbone=made.merged(*EARLIER))
    near(seen.start, expected.start)
    found, wanted = changes(one), changes(other)
    assert found.keys() == wanted.keys()
    for path, change in wanted.items():
        near(found[path], change, 1e-3)  # those of differences are a small part of what they are made of
    near(logits(one), logits(other), 1e-4)
    assert (logits(one) - seen.start).norm() > 1e-3 * seen.start.norm()


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_brings_what_it_lies_on(stacked, made, name):
    task, _, path, _ = stacked(name)
    loaded = load(path)
    assert torch.equal(logits(loaded), logits(task))
    assert loaded.backbone_digest == load(made(EARLIER[0])[0]).backbone_digest


@pytest.mark.parametrize("name", [row for row in NAMES if row.values[0] not in NO_CHANGE])
def test_its_update_is_that_of_the_backbone(stacked, name):
    task, _, path, sources = stacked(name)
    near(outputs(load_given(path)), outputs(task))
    update, live = read(path), of_model(task.model)
    assert list(update.origin["on_top_of"]) == sources
    assert live.changes.keys() == update.changes.keys()
    for place, delta in live.changes.items():
        assert all(map(torch.equal, delta.tensors(), update.changes[place].tensors()))


# Each kind of change on top of another: thin, entrywise, both, dense, none.
KINDS = {name: SHORT[name] for name in ("LoRA", "HiRA", "HiRALoRA", "FullFineTuning", "BitFit")}
PAIRS = [(other, "HiRA") for other in KINDS] + [("HiRA", other) for other in KINDS if other != "HiRA"]


@pytest.mark.parametrize(("earlier", "method"), PAIRS)
def test_whatever_lies_on_whatever_both_are_one_update(made, fit, earlier, method):
    task, seen, path = fit(dataclasses.replace(KINDS[method], on_top_of=made(KINDS[earlier])[0]))
    near(outputs(load_given(path)), outputs(task))
    assert (logits(task) - seen.start).norm() > 1e-3 * seen.start.norm()


@pytest.mark.parametrize("task", [
    pytest.param(name, marks=pytest.mark.slow if name in {"MaskedLM", "CausalLM"} else []) for name in TASKS
])  # fmt: skip
def test_every_task_is_that_on_the_merged_backbone(checkpoint, data_of, folder_of, bert, text, tmp_path, task):
    kind, architecture = TASKS[task]
    architecture = bert if architecture == "bert" else architecture
    source = checkpoint(kind, architecture, LoRA(rank=3))
    cli.main(["export", source, "--to", "merged", "--output", str(tmp_path / "merged")])
    found = []
    for backbone, on_top_of in ((folder_of(architecture), source), (str(tmp_path / "merged"), None)):
        made = kind(backbone, LoRA(rank=2, on_top_of=on_top_of), optimizer=adamw)
        trainer = fit_on(made, data_of(kind), tmp_path, steps=2, look=False)[1]
        found.append((outputs(made), made, trainer))
    (one, made, trainer), (other, *_) = found
    near(one, other, 1e-4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    near(outputs(load_given(tmp_path / "last.ckpt")), one)
    # Retention is counted from the backbone as it came.
    base = {name: value for name, value in retained(load(source), text).items() if "base" in name}
    ours = retained(load(tmp_path / "last.ckpt"), text)
    assert {name: ours[name] for name in base} == base
    assert base or task in {"SequenceClassification", "QuestionAnswering"}


def test_the_backbone_can_be_looked_at_and_put_back(stacked, bert):
    task = stacked("LoRA")[0].eval()
    plain = SequenceClassification(bert, LoRA(rank=2), num_labels=2)
    plain.configure_model()
    originals, before = original_weights(task), {k: v.clone() for k, v in task.model.state_dict().items()}
    with base_model(task, originals), torch.no_grad():
        found = task.encoder(**ROWS).last_hidden_state
    assert torch.equal(found, plain.eval().encoder(**ROWS).last_hidden_state)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_sources_of_other_forms(made, fit, tmp_path, form):
    source = made(EARLIER[0])[0]
    cli.main(["export", source, "--to", form, "--output", str(tmp_path / form)])
    first = fit(LoRA(rank=2, on_top_of=[source]))[0]
    task, _, path = fit(LoRA(rank=2, on_top_of=[str(tmp_path / form)]))
    shutil.rmtree(tmp_path / form)
    near(logits(task), logits(first))
    assert torch.equal(logits(load(path)), logits(task))


def test_a_stage_lies_on_the_last_which_has_all_in_it(made, fit):
    first = made(EARLIER[0])[0]
    second, _, path = fit(LoRA(rank=2, on_top_of=first), "second")
    third, seen, last = fit(FCLoRA(rank=3, on_top_of=path), "third")
    near(seen.start, logits(second))
    near(outputs(load_given(last)), outputs(third))
    with pytest.raises(InputError, match=r"what is in .*source.ckpt is in .*third.ckpt too, and would count twice"):
        fit(LoRA(rank=2, on_top_of=[first, last]))
    with pytest.raises(
        InputError, match=rf"^{HERE}what is in {first} is in {first} too, and would count twice; give it once"
    ):
        fit(LoRA(rank=2, on_top_of=[first, first]))
    with pytest.raises(InputError, match=r"source.ckpt, which on_top_of names, is in it; leave on_top_of out"):
        fit(LoRA(rank=4, on_top_of=first, start_from=path))


def test_it_may_begin_at_another_adapter(made, fit):
    (one,), (other,) = made(LoRA(rank=2)), made(LoRA(rank=3))
    _, seen, _ = fit(LoRA(rank=3, on_top_of=one, start_from=other))
    near(seen.start, fit(LoRA(rank=1, on_top_of=[one, other]))[1].start)
    for path, change in seen.changes.items():
        near(change, read(other).changes[path].dense())
    with pytest.raises(InputError, match=r"start_from: .*multiplies the backbone's weight, which is another on top"):
        fit(HiRA(rank=3, on_top_of=one, start_from=made(HiRA(rank=3))[0]))


@pytest.mark.parametrize("method", [LoRA(rank=4), ProjLoRA(rank=4, principal_rank=6), FCLoRA(rank=4)])
def test_it_keeps_out_of_what_it_lies_on(made, fit, method):
    earlier = made(LoRA(rank=2), LoRA(rank=3))
    task, seen, path = fit(dataclasses.replace(method, on_top_of=earlier, after=earlier))
    assert inside(task, earlier) < 1e-5
    assert max(seen.outside) < 1e-5
    near(outputs(load_given(path)), outputs(task))


def test_bounds_are_of_the_new_change_alone(made, fit):
    task, seen, _ = fit(LoRA(rank=4, ball=1e-3, on_top_of=made(*EARLIER)))
    assert max(seen.outside) < 1e-6
    assert max(float(torch.linalg.matrix_norm(delta, 2)) for delta in changes(task).values()) > 9e-4
    assert min(delta.singular_values()[0] for delta in task.beneath.changes.values()) > 0.1


def test_a_run_goes_on_to_the_bit(made, fit, tmp_path):
    method = LoRA(rank=4, dropout=0.1, on_top_of=made(*EARLIER))
    half = tmp_path / "half.ckpt"
    straight = fit(method, "straight", steps=6, callbacks=[Save(half, 3)])[0]
    resumed = fit(method, "resumed", path=half, steps=6)[0]
    expected = trained_state(straight.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained_state(resumed.model).items())


def test_a_pooler_that_the_files_lack_goes_on(checkpoint, fit, backbone_folder, tmp_path):
    source = checkpoint(SequenceClassification, "bert", LoRA(rank=2))
    task = fit(LoRA(rank=2, on_top_of=source), backbone=backbone_folder("bert"))[0]
    pooler = "bert.pooler.dense.weight"
    begun, ended = read(source).whole[pooler], of_model(task.model).whole[pooler]
    assert 0 < (ended - begun).abs().max() < 0.04  # of three steps of 0.01


def test_of_heads_the_last_that_fits_is_where_the_new_one_begins(checkpoint, fit, backbone_folder, caplog):
    one, other = (checkpoint(SequenceClassification, "bert", method, type(method).__name__) for method in EARLIER)
    answers = checkpoint(QuestionAnswering, "bert", LoRA(rank=2))
    task = fit(LoRA(rank=2, on_top_of=[one, other, answers]), backbone=backbone_folder("bert"))[0]
    assert torch.equal(task.beneath.whole["classifier.weight"], read(other).whole["classifier.weight"])
    assert "qa_outputs.bias, qa_outputs.weight in " in caplog.text
    assert not [name for name in task.beneath.whole if name.startswith("qa")]
