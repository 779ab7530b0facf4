"""`lit-spectral continual`: what is run after what, what is measured of it, and what is not run again."""

import csv
import json
import shutil
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import yaml
from conftest import WORDS
from lit_spectral.datamodules import GLUE

from lit_spectral import cli
from lit_spectral.checkpoint import load
from lit_spectral.comparison import fitting
from lit_spectral.continual.scores import backward_transfer, forgetting, forward_transfer, mean_final
from lit_spectral.errors import InputError
from lit_spectral.verbs import VERBS

# R[i, j]: on stage j after stage i.
SCORES = np.array([[0.8, 0.1, 0.2], [0.9, 0.7, 0.3], [0.5, 0.6, 0.95]])


def test_measures_of_a_matrix_by_hand():
    assert mean_final(SCORES) == pytest.approx((0.5 + 0.6 + 0.95) / 3)
    assert forgetting(SCORES, [True] * 3) == pytest.approx((0.4 + 0.1) / 2)  # the best is 0.9, though not the first
    assert backward_transfer(SCORES, [True] * 3) == pytest.approx((-0.3 - 0.1) / 2)
    assert forward_transfer(SCORES, np.array([0.3, 0.2, 0.1]), [True] * 3) == pytest.approx((-0.1 + 0.2) / 2)


def test_scores_of_which_less_is_better_are_forgotten_upwards():
    losses = 1 - SCORES
    assert forgetting(losses, [False] * 3) == pytest.approx(forgetting(SCORES, [True] * 3))
    assert backward_transfer(losses, [False] * 3) == pytest.approx(backward_transfer(SCORES, [True] * 3))


def test_a_score_that_is_not_finite_stays_that():
    assert np.isnan(forgetting(np.where(SCORES == 0.9, np.nan, SCORES), [True] * 3))


def config(backbone, data, answer="{a}"):
    quiet = dict.fromkeys(["enable_progress_bar", "enable_model_summary"], False)
    given = {"path": str(data), "prompt": "{q}", "answer": answer, "batch_size": 4, "max_length": 40}
    return {
        "trainer": {"max_steps": 2, "accelerator": "cpu", "num_sanity_val_steps": 0, "log_every_n_steps": 1, **quiet},
        "model": {"class_path": "CausalLM", "init_args": {"backbone": backbone}},
        "data": {"class_path": "PromptedText", "init_args": given},
    }


@pytest.fixture
def study(long_decoder, tmp_path, monkeypatch):
    """Run the verb with LoRA on two small stages, in this process; returns the subcommands that it ran."""
    monkeypatch.chdir(tmp_path)
    for stage, words in (("birds", WORDS[:8]), ("hills", WORDS[8:])):
        Path(stage).mkdir()
        for split in ("train", "validation"):
            rows = [{"q": f"{one} {other}", "a": other} for one, other in zip(words, reversed(words), strict=True)]
            Path(stage, f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        Path(f"{stage}.yaml").write_text(yaml.safe_dump(config(long_decoder, stage)), encoding="utf-8")
    Path("text.txt").write_text("the cat sat on the mat\nthe dog ran over the hill\n" * 20, encoding="utf-8")
    ran = []

    def inside(command):
        ran.append(command)
        try:
            cli.run(command) if command[0] == "fit" else VERBS[command[0]].run(command[1:])
        except (RuntimeError, InputError):
            return 1
        return 0

    def run(*flags, stages=("birds=birds.yaml", "hills=hills.yaml"), methods=("LoRA",), seeds=("0",)):
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "call", inside)
            ran.clear()
            cli.main(["continual", "--stages", *stages, "--methods", *methods, "--seeds", *seeds, *flags])
        return list(ran)

    return run


FOLDER = Path("runs/continual/birds-hills")


def table(name):
    with open(FOLDER / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses(method):
    found = [row for row in table("scores.csv") if row["method"] == method and row["metric"] == "val/loss"]
    return {(row["after"], row["on"]): float(row["value"]) for row in found}


def test_one_adapter_and_one_a_stage_beside_each_other(study, capsys):
    ways = ["--LoRA+after.how", "after", "--model.method.rank", "2", "--corpora", "text.txt", "--limit", "4"]
    ran = study(*ways, methods=["LoRA", "LoRA+after=LoRA"])
    fits = [command for command in ran if command[0] == "fit"]
    first = "runs/continual/birds-hills/{}/seed_0/1_birds/checkpoints/last.ckpt"
    assert [[flag for flag in fit if "birds/checkpoints" in flag] for fit in fits] == [
        [],
        [f"--model.method.start_from={first.format('LoRA')}"],
        [],
        [f"--model.method.{setting}={first.format('LoRA+after')}" for setting in ("on_top_of", "after")],
    ]
    # The backbone's own row is measured once.
    assert len(ran) - len(fits) == 5
    chain, after = losses("LoRA"), losses("LoRA+after")
    assert chain["before", "birds"] == after["before", "birds"]
    assert len(chain) == 6
    record = json.loads((FOLDER / "LoRA/seed_0/2_hills/record.json").read_text())
    assert chain["after hills", "hills"] == pytest.approx(record["metrics"]["val/loss"], rel=1e-5)
    assert len(set(chain.values())) == 6
    summary = {row["method"]: row for row in table("table.csv")}
    forgotten = chain["after hills", "birds"] - chain["after birds", "birds"]
    assert float(summary["LoRA"]["forgetting"]) == pytest.approx(forgotten)
    assert "retention/text/forgetting_loss" in summary["LoRA"]
    assert "forgetting difference mean" in summary["LoRA+after"]
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert "What is retained, by stage" in page
    assert "after hills" in capsys.readouterr().out
    assert study(*ways, methods=["LoRA", "LoRA+after=LoRA"]) == []


@pytest.mark.slow
def test_methods_with_rates_of_their_own_share_the_row_of_the_backbone(study):
    ran = study("--model.optimizer", "AdamW", "--model.optimizer.lr", "1e-3,1e-2")
    assert [command[0] for command in ran].count("continual") == 5  # and not 6


@pytest.mark.slow
def test_what_fails_is_one_line_and_the_same_command_goes_on(study, capsys):
    Path("hills/validation.jsonl").rename("aside")
    with pytest.raises(SystemExit):
        study()
    said = capsys.readouterr().out
    # The backbone was measured on the first stage, and that is kept.
    assert "failed: 1 of 1: LoRA, seed 0, stage 1 of 2: birds: it could not be validated" in said
    Path("aside").rename("hills/validation.jsonl")
    scores = json.loads((FOLDER / "before/seed_0/scores.json").read_text())
    assert list(scores) == ["birds"]
    (FOLDER / "before/seed_0/scores.json").write_text(json.dumps(scores).replace("val/loss", "val/kept"))
    assert [command[0] for command in study()] == ["continual", "continual", "fit", "continual"]
    assert {row["metric"] for row in table("scores.csv") if row["after"] == "before" and row["on"] == "birds"} >= {
        "val/kept"
    }


def test_a_stage_that_went_on_from_another_run_is_not_taken_for_one_that_did_from_this(study, capsys):
    study()
    shutil.rmtree(FOLDER / "LoRA/seed_0/1_birds")
    with pytest.raises(SystemExit):
        study()
    message = "2_hills has a run of other settings (another run in runs/continual/birds-hills/LoRA/seed_0/1_birds"
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_stage_that_fails_stops_its_method_alone(study, capsys, monkeypatch):
    original = fitting.fit

    def fit(planned, *args):
        return 1 if planned.folder.match("LoRA/seed_0/2_hills") else original(planned, *args)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit", fit)
        with pytest.raises(SystemExit) as stopped:
            study("--how", "stack", methods=["LoRA", "FCLoRA"])
    assert stopped.value.code == 1
    assert "failed: 1 of 2: LoRA, seed 0, stage 2 of 2: hills; the same command" in capsys.readouterr().out
    assert [row["method"] for row in table("table.csv")] == ["FCLoRA"]
    assert ("after birds", "hills") in losses("LoRA")
    ran = study("--how", "stack", methods=["LoRA", "FCLoRA"])
    assert [command[0] for command in ran] == ["fit", "continual"]


@pytest.mark.slow
def test_training_on_all_stages_is_the_ceiling(study):
    Path("joint.yaml").write_text(Path("hills.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    study("--joint", "joint.yaml")
    (summary,) = table("table.csv")
    joint = [value for (after, _), value in losses("LoRA").items() if after == "joint"]
    assert float(summary["joint"]) == pytest.approx(sum(joint) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["chain", "stack"])
def test_a_stage_keeps_the_head_that_it_was_trained_with(study, backbone_folder, mrpc_folder, how):
    """The second one's head has no room for the first one's classes."""
    shutil.copytree(mrpc_folder, "stsb")
    for name, task, path, labels in (("birds", "mrpc", mrpc_folder, 2), ("hills", "stsb", "stsb", 1)):
        model = {"backbone": backbone_folder("bert"), "num_labels": labels}
        given = config("", "") | {
            "model": {"class_path": "SequenceClassification", "init_args": model},
            "data": {"class_path": "GLUE", "init_args": {"task": task, "path": path, "batch_size": 4}},
        }
        Path(f"{name}.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    study("--how", how, "--model.optimizer", "AdamW", "--model.optimizer.lr", "0.01")
    found = losses("LoRA")
    assert found.keys() == {("after birds", "birds"), ("after hills", "birds"), ("after hills", "hills")}
    first, second = (load(FOLDER / f"LoRA/seed_0/{stage}/checkpoints/last.ckpt") for stage in ("1_birds", "2_hills"))
    first.model.bert = second.model.bert
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (logged,) = trainer.validate(first, GLUE("mrpc", mrpc_folder, batch_size=4))
    assert found["after hills", "birds"] == pytest.approx(logged["val/loss"], rel=1e-5)
    assert found["after birds", "birds"] != pytest.approx(logged["val/loss"], rel=1e-4)  # of the second stage


@pytest.mark.parametrize(
    ("flags", "stages", "message"),
    [
        ([], ["birds=birds.yaml"], "--stages has one stage alone"),
        ([], ["a=birds.yaml", "a=hills.yaml"], "--stages has two of the name a"),
        ([], ["joint=birds.yaml", "a=hills.yaml"], "'joint=birds.yaml' is no stage; give NAME=CONFIG"),
        ([], ["a=nowhere.yaml", "b=hills.yaml"], "there is no file nowhere.yaml"),
        (["--how", "chian"], None, "--how: there is no chian; did you mean chain?"),
        (["--LoRa.how", "stack"], None, "--LoRa.how: --methods has no LoRa; did you mean LoRA?"),
        (["--LoRA.after", "x"], None, "--LoRA.after is not for the runs; give --how"),
        (["--PiSSA.how", "after"], None, "PiSSA by after: methods that start at a part of W₀ can't keep out"),
        (["--MoRA.how", "chain"], None, "MoRA by chain: this method can't begin at a given change"),
        (["--HiRA.how", "after"], None, "HiRA by after: HiRA's ΔW is no product of thin factors; give --HiRA.how"),
        (["--model.quantization", "int8", "--how", "stack"], None, "a quantised backbone can't hold earlier adapters"),
        (["--trainer.enable_checkpointing", "false"], None, "birds.yaml keeps no checkpoint"),
        ([], ["a=birds.yaml", "b=other.yaml"], "a and b have different backbones, "),
        ([], ["a=birds.yaml", "b=masked.yaml"], "a and b have different tasks, CausalLM and MaskedLM"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_one_line_before_anything_runs(study, capsys, flags, stages, message):
    other = yaml.safe_load(Path("birds.yaml").read_text(encoding="utf-8"))
    other["model"]["init_args"]["backbone"] = "elsewhere"
    Path("other.yaml").write_text(yaml.safe_dump(other), encoding="utf-8")
    masked = other | {
        "model": {"class_path": "MaskedLM"},
        "data": {"class_path": "MaskedText", "init_args": {"path": "text.txt"}},
    }
    Path("masked.yaml").write_text(yaml.safe_dump(masked), encoding="utf-8")
    method = flags[0][2:].split(".")[0] if flags and flags[0].endswith(".how") else "LoRA"
    with pytest.raises(SystemExit) as stopped:
        study(
            *flags,
            stages=stages or ("birds=birds.yaml", "hills=hills.yaml"),
            methods=["LoRA" if method == "LoRa" else method],
        )
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert message in said
    assert not list(Path().rglob("command.json"))
