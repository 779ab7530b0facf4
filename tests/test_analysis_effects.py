"""What adapters do to the model: figures against what models compute, switches against adapters of one map."""

import csv
from dataclasses import replace

import pytest
import torch
from live import TASKS
from test_retention import disturb

from lit_spectral import analysis as an
from lit_spectral.adapters import named_changes
from lit_spectral.analysis.command import parse, run
from lit_spectral.analysis.effects import effects, groups_of, only
from lit_spectral.checkpoint import load_given
from lit_spectral.errors import InputError
from lit_spectral.methods import HiRA, LoRA
from lit_spectral.retention import Retention
from lit_spectral.updates import exports
from lit_spectral.updates.of_model import of_model


@pytest.fixture
def source(backbone_folder, tmp_path):
    """A folder with an adapter of an architecture's task, which changes predictions by much."""

    def write(architecture, method=None, name="adapter", change=lambda update: update):
        torch.manual_seed(0)
        kind, settings = TASKS[architecture]
        folder = backbone_folder(architecture)
        task = kind(folder, method or LoRA(rank=2), **settings)
        task.configure_model()
        disturb(task, 0.2)
        update = replace(of_model(task.model), backbone=folder)
        thin = all(delta.is_thin for delta in update.changes.values())
        exports.write(change(update), tmp_path / name, "peft" if thin else "merged")
        return str(tmp_path / name)

    return write


def given_to(source, text, **sizes):
    task = load_given(source)
    retention = Retention({"words": text}, None, None, **{"max_length": 16, "batch_size": 4, **sizes})
    retention.prepare(task)
    return task, retention


def test_of_a_decoder_all_is_what_both_models_compute(source, text):
    task, retention = given_to(source("llama"), text)
    found = effects(task, retention)["words"]
    whole = [batch["input_ids"] for batch in retention._texts["words"]]
    logits, states = [], []
    for model in (lambda: retention.base(task), lambda: only(task, list(named_changes(task.model)))):
        with model(), torch.no_grad():
            each = [task.model(input_ids=ids, output_hidden_states=True) for ids in whole]
        logits.append(torch.cat([out.logits[:, :-1].flatten(0, 1) for out in each]).double().log_softmax(-1))
        states.append([torch.cat([layer[:, 1:].flatten(0, 1) for layer in layers]).double()
                       for layers in zip(*(out.hidden_states for out in each), strict=True)])  # fmt: skip
    base, adapted = logits
    kl = float((base.exp() * (base - adapted)).sum(-1).mean())
    cross = -float((base.exp() * adapted).sum(-1).mean())
    assert kl > 1e-3
    assert found.tokens["kl"] == pytest.approx(kl, rel=1e-4)
    assert found.tokens["forgetting_loss"] == pytest.approx(cross, rel=1e-5)
    assert found.tokens["forgetting_loss"] - found.tokens["base_entropy"] == pytest.approx(kl, rel=1e-3)
    assert len(found.states) == 3
    for each, one, other in zip(found.states, *states, strict=True):
        moments = an.Moments()
        moments.add(one, other)
        assert each == pytest.approx((an.linear_cka(moments), an.procrustes_residual(moments)), rel=1e-6, abs=1e-12)
    assert found.states[0] == pytest.approx((1, 0), abs=1e-12)
    assert found.states[-1].procrustes > 1e-4


@pytest.mark.parametrize("by", ["layers", "modules"])
def test_a_switch_is_an_adapter_with_fewer_maps(by, source, text, tmp_path):
    task, retention = given_to(source("llama"), text)
    found = effects(task, retention, by)["words"]
    groups = groups_of(list(named_changes(task.model)), by)
    assert list(found.switched) == list(groups)
    name, paths = list(groups.items())[-1]
    for which, kept in (("without", lambda path: path not in paths), ("alone", lambda path: path in paths)):

        def few(update, kept=kept):
            return replace(update, changes={path: delta for path, delta in update.changes.items() if kept(path)})

        alike = effects(*given_to(source("llama", name=which, change=few), text))["words"]
        assert getattr(found.switched[name], which) == pytest.approx(alike.tokens["kl"], rel=1e-5)


@pytest.mark.parametrize("method", [LoRA(rank=2), HiRA(rank=2)], ids=["thin", "dense"])
def test_the_model_is_bit_for_bit_as_it_was(method, source, text, backbone_folder):
    place = source("llama", method)
    task = load_given(place, backbone_folder("llama"))
    retention = Retention({"words": text}, None, 2, 16, 2)
    retention.prepare(task)
    ids = torch.arange(5, 25).view(2, 10)
    before, state = task.model(input_ids=ids).logits, {name: each.clone() for name, each in task.state_dict().items()}
    effects(task, retention, "modules")
    assert torch.equal(task.model(input_ids=ids).logits, before)
    assert all(torch.equal(each, state[name]) for name, each in task.state_dict().items())
    assert not any("forward" in vars(module) for module in task.model.modules())


def test_an_adapter_that_fails_within_a_switch_comes_back(source):
    task = load_given(source("llama"))
    with pytest.raises(RuntimeError, match="memory"), only(task, []):
        raise RuntimeError("out of memory")
    assert {change.scale for change in named_changes(task.model).values()} == {1.0}


def test_groups_are_layers_or_maps_and_what_is_in_no_layer_is_by_itself():
    paths = ["h.0.q", "h.0.k", "h.1.q", "lm_head"]
    assert groups_of(paths, None) == {}
    assert groups_of(paths, "layers") == {"layer 0": paths[:2], "layer 1": paths[2:3], "lm_head": paths[3:]}
    assert groups_of(paths, "modules") == {path: [path] for path in paths}
    halves = ["encoder.layers.0.fc1", "decoder.layers.0.fc1"]
    assert groups_of(halves, "layers") == {f"{path[:14]} layer 0": [path] for path in halves}


def test_of_an_encoder_without_a_masked_head_only_states_are_compared(source, text, backbone_folder, tmp_path, caplog):
    from transformers import AutoModel, AutoTokenizer

    bare = tmp_path / "bare"
    AutoModel.from_pretrained(backbone_folder("bert"), add_pooling_layer=True).save_pretrained(bare)
    AutoTokenizer.from_pretrained(backbone_folder("bert")).save_pretrained(bare)
    task = load_given(source("bert"), str(bare))
    retention = Retention({"words": text}, None, None, 16, 4)
    retention.prepare(task)
    found = effects(task, retention, "layers")["words"]
    assert (found.tokens, found.switched, len(found.states)) == ({}, {}, 3)
    assert found.states[-1].procrustes > 1e-4
    assert "nothing is switched" in caplog.text


def test_an_encoder_with_one_is_measured_by_masked_tokens_as_retention_is(source, text):
    task, retention = given_to(source("bert"), text)
    found, expected = effects(task, retention)["words"], retention.measure(task)
    for measure in ("forgetting_loss", "base_entropy", "loss", "base_loss"):
        assert found.tokens[measure] == pytest.approx(expected[f"words/{measure}"], rel=1e-6)


def rows(file):
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_page_and_tables_have_what_was_measured(source, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--rank=1", "--top=2", f"--corpora=a={text}", "--max_length=16", "--switch=layers", "--output_folder=out"]
    page = run([source("llama"), source("llama", name="half", change=lambda update: update.scaled(0.5)), *flags])
    html = page.read_text(encoding="utf-8")
    assert "What it does to the model" in html
    assert "switched off" in html
    texts, states, switches = (rows(f"out/{name}.csv") for name in ("texts", "states", "switches"))
    whole, half = (float(row["kl"]) for row in texts)
    assert whole > half > 0
    assert [row["layer"] for row in states] == ["0", "1", "2"] * 2
    assert [row["switched"] for row in switches] == ["layer 0", "layer 1"] * 2
    assert all(0 < float(row["kl_without"]) < 2 * whole for row in switches)
    assert "texts.csv, states.csv, switches.csv; overview.png" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "said"), [
    (["--switch=layers"], "--switch asks what a text shows; give --corpora too"),
    (["--corpora=nowhere.txt"], "nowhere.txt"),
    (["--corpora=x=", "--limit=2"], "lacks a name or a text"),
    (["--corpora=x", "--limit=-1"], "limit must be at least 0"),
    (["--corpora=x", "--max_length=1"], "max_length must be at least 2"),
])  # fmt: skip
def test_texts_that_can_not_be_read_are_one_line_before_anything_is_done(flags, said):
    with pytest.raises(InputError, match=said):
        parse(["adapter", *flags])
