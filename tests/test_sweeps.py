"""A sweep is what its values are one by one: mended, put on, measured; and the adapter is what it was afterwards."""

import json
import re
from pathlib import Path

import pytest
import torch
from test_given import checkpoint, data_of, folder_of, outputs, retained, text  # noqa: F401 (fixtures)

from lit_spectral import cli
from lit_spectral.checkpoint import load_given
from lit_spectral.errors import InputError
from lit_spectral.methods import BitFit, HiRA, LoRA
from lit_spectral.retention.command import _parse
from lit_spectral.sweeps import Sweep, sweep, sweeps_of
from lit_spectral.tasks import CausalLM, SequenceClassification
from lit_spectral.updates.backbone import Backbone
from lit_spectral.updates.mending import mend

SHORT = ["--limit=4", "--max_length=16"]


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"scale": "0,0.5,1"}, (0.0, 0.5, 1.0)),
        ({"scale": "0:1:0.1"}, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
        ({"scale": "1:-1:-0.5"}, (1.0, 0.5, 0.0, -0.5, -1.0)),
        ({"rank": "4:16:4"}, (4, 8, 12, 16)),
        ({"rank": "10:30:10"}, (10, 20, 30)),
        ({"ball": "0.5, q2, {quantile: 0.6}"}, (0.5, "q2", {"quantile": 0.6})),
        ({"intruders": "0.6"}, (0.6,)),
    ],
)
def test_values_are_those_that_mend_reads(given, values):
    assert sweeps_of(given) == [Sweep(next(iter(given)), values)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scale="], "scale: '' lacks a value"),
        (["--scale=0,,1"], "scale: '0,,1' lacks a value"),
        (["--scale=0.5,0.50"], "scale: 0.5 is there twice in 0.5,0.50"),
        (["--scale=0,x"], "scale is a number, not x"),
        (["--scale=1:0:0.1"], "scale: 1:0:0.1 holds no value"),
        (["--scale=0:1:0"], "scale: 0:1:0 holds no value"),
        (["--scale=0:1:1e-9"], "has more than 200 values"),
        (["--scale=0:inf:1"], "holds no value"),
        (["--ball=q2,0"], "ball is above 0, not 0"),
        (["--principal_rank=0,8"], "principal_rank is a whole number, at least 1, not 0"),
        (["--scale=1", "--tasks", "boolq"], "--scale sweeps what texts show, not --tasks"),
        (["--validate"], "--validate is for sweeps"),
    ],
)
def test_a_mistake_is_told_before_anything_is_read(flags, said):
    with pytest.raises(InputError, match=re.escape(said)):
        _parse(["--adapter=nowhere", *flags])


@pytest.mark.parametrize(
    ("kind", "architecture", "method"),
    [(SequenceClassification, "bert", LoRA(rank=2)), (CausalLM, "llama", HiRA(rank=2))],
)
def test_each_value_is_what_mend_makes_of_it(checkpoint, kind, architecture, method):
    task = load_given(checkpoint(kind, architecture, method))
    before, update, backbone = outputs(task), task.method.read(), Backbone(task.backbone)
    asked = [Sweep("scale", (0.0, 0.5)), Sweep("ball", ("q1", 0.05)), Sweep("principal_rank", (2,))]
    rows = list(sweep(task, asked, lambda: {"seen": outputs(task)}))
    assert [row.label for row in rows] == [
        "as it is",
        "scale 0",
        "scale 0.5",
        "ball q1",
        "ball 0.05",
        "principal_rank 2",
    ]
    for row in rows:
        expected = update if row.repair is None else mend(update, row.repair, row.value, backbone)
        task.method.put(expected)
        assert torch.equal(row.measured["seen"], outputs(task))
        norms = [
            float(delta.singular_values(backbone.behind(path, delta))[0]) for path, delta in expected.changes.items()
        ]
        assert row.spectral_norm == pytest.approx(max(norms), rel=1e-4)
    task.method.put(update)
    assert torch.equal(outputs(task), before)


def test_what_is_as_it_is_is_measured_once(checkpoint):
    task = load_given(checkpoint(SequenceClassification, "bert", LoRA(rank=2)))
    measured = iter([{"seen": 1.0}, {"seen": 2.0}])
    rows = list(sweep(task, [Sweep("scale", (1.0, 0.5))], lambda: next(measured)))
    assert [(row.label, row.measured["seen"]) for row in rows] == [("as it is", 1), ("scale 1", 1), ("scale 0.5", 2)]
    assert rows[0].spectral_norm == rows[1].spectral_norm


def test_after_a_measure_that_fails_the_adapter_is_what_it_was(checkpoint):
    task = load_given(checkpoint(SequenceClassification, "bert", LoRA(rank=2)))
    before = outputs(task)
    rows = sweep(task, [Sweep("scale", (0.0,))], dict)
    next(rows)
    next(rows)
    rows.close()
    assert torch.equal(outputs(task), before)


@pytest.mark.parametrize(
    ("method", "asked", "said"),
    [
        (BitFit(), Sweep("scale", (0.5,)), "all of it was trained whole"),
        (LoRA(rank=2), Sweep("principal_rank", (2, 33)), "rank 33 is above"),
    ],
)
def test_what_cant_be_swept_is_refused_before_anything_is_measured(checkpoint, method, asked, said):
    task = load_given(checkpoint(SequenceClassification, "bert", method))
    with pytest.raises(InputError, match=said):
        next(sweep(task, [asked], lambda: pytest.fail("it measures")))


def test_retain_tells_of_every_value(checkpoint, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = checkpoint(CausalLM, "llama", LoRA(rank=2))
    cli.main(["retain", "--adapter", path, "--corpora", f"words={text}", *SHORT, "--scale=0,1", "--ball=0.05"])
    report = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    rows = {row["label"]: row["measured"] for row in report["rows"]}
    assert list(rows) == ["as it is", "scale 0", "scale 1", "ball 0.05"]
    expected = retained(load_given(path), text)
    assert rows["as it is"] == {f"retention/{name}": pytest.approx(value, rel=1e-6) for name, value in expected.items()}
    assert rows["scale 1"] == pytest.approx(rows["as it is"], rel=1e-6)
    backbone = rows["scale 0"]
    assert backbone["retention/words/loss"] == pytest.approx(backbone["retention/words/base_loss"], rel=1e-6)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert "4 of 4: ball 0.05: words/forgetting loss" in told
    assert "backbone" in told


@pytest.fixture
def run(fit, tmp_path):
    """A short run of a shipped config, and its checkpoint."""
    fit("fclora_roberta_mrpc", "--trainer.max_steps=4", "--model.optimizer.lr=0.05")
    return next(str(path) for path in tmp_path.rglob("*.ckpt"))


def test_validate_sweeps_what_the_config_logs(fit, run, text, tmp_path):
    monitor = {"corpora": {"words": text}, "limit": 4, "max_length": 16}
    flags = [
        "--trainer.callbacks+=RetentionMonitor",
        *(f"--trainer.callbacks.{k}={json.dumps(v)}" for k, v in monitor.items()),
    ]
    fit("fclora_roberta_mrpc", f"--adapter={run}", "--scale=0,1", *flags, command="validate")
    file = next(tmp_path.rglob("sweep.json"))
    rows = {row["label"]: row["measured"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    assert list(rows) == ["as it is", "scale 0", "scale 1"]
    plain = fit("fclora_roberta_mrpc", f"--ckpt_path={run}", command="validate").trainer.callback_metrics
    metrics = {name: float(value) for name, value in plain.items()}
    assert {name: rows["as it is"][name] for name in metrics} == pytest.approx(metrics, rel=1e-5)
    assert rows["scale 0"]["retention/words/accuracy"] == rows["scale 0"]["retention/words/base_accuracy"]
    assert file.with_suffix(".png").exists()


def test_retain_validates_by_the_runs_own_config(fit, run, text):
    cli.main(
        ["retain", "--adapter", run, "--corpora", f"words={text}", *SHORT, "--scale=0.5", "--validate", "--device=cpu"]
    )
    folder = Path(run).parents[1]
    rows = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["rows"]
    plain = fit("fclora_roberta_mrpc", f"--ckpt_path={run}", command="validate").trainer.callback_metrics
    assert rows[0]["measured"]["val/accuracy"] == pytest.approx(float(plain["val/accuracy"]))
    assert {"val/accuracy", "retention/words/forgetting_loss"} <= rows[1]["measured"].keys()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--adapter=x", "--ckpt_path=y"], "adapter: it and ckpt_path both say what was trained"),
        (["--scale=0,1"], "scale: it is for an adapter; give --adapter SOURCE"),
        (["--adapter=nowhere"], "nowhere: there is nothing there"),
        (["--adapter=nowhere", "--scale=1,1.0"], "scale: 1.0 is there twice"),
    ],
)
def test_flags_of_validate_that_cant_be_used(fit, flags, said):
    with pytest.raises(InputError, match=re.escape(said)):
        fit("fclora_roberta_mrpc", *flags, command="validate")
