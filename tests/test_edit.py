"""`lit-spectral edit`: what is trained, what is measured of it, and what is not done again."""

import csv
import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from conftest import WORDS

from lit_spectral import cli
from lit_spectral.checkpoint import load
from lit_spectral.comparison import fitting
from lit_spectral.errors import InputError

TRAINER = {"max_steps": 3, "accelerator": "cpu", "num_sanity_val_steps": 0, "log_every_n_steps": 1}
TRAINER |= dict.fromkeys(["enable_progress_bar", "enable_model_summary"], False)
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}}
FOLDER = Path("runs/edit/edits")
EDITS = [
    {"prompt": f"the {who} sat on the", "old": "mat", "new": "hill", "category": kind}
    for who, kind in zip(WORDS[1:6], ("cats", "cats", "dogs", "dogs", "dogs"), strict=True)
]
UNRELATED = [{"prompt": f"the bird {did}", "answer": "under"} for did in WORDS[4:8]] + [
    {"prompt": "then", "answer": ""}
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(name):
    with open(FOLDER / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def study(decoder_folder, tmp_path, monkeypatch):
    """Run the verb with LoRA on five edits, in this process; returns the runs of `fit` that it made."""
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    Path("set/train.jsonl").write_text(lines(EDITS), encoding="utf-8")
    Path("set/unrelated.jsonl").write_text(lines(UNRELATED), encoding="utf-8")
    model = {
        "backbone": decoder_folder(),
        "method": {"class_path": "LoRA", "init_args": {"rank": 2}},
        "optimizer": ADAMW,
    }
    config = {"trainer": TRAINER, "model": {"class_path": "CausalLM", "init_args": model}}
    config["data"] = {"class_path": "Edits", "init_args": {"path": "set", "batch_size": 4}}
    Path("edits.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    ran = []

    def inside(command):
        ran.append(next(flag for flag in command if flag.startswith("--trainer.logger")))
        try:
            cli.run(command)
        except (RuntimeError, InputError):
            return 1
        return 0

    def run(*flags, methods=("LoRA",), seeds=("0",)):
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "call", inside)
            ran.clear()
            cli.main(["edit", "--config=edits.yaml", "--methods", *methods, "--seeds", *seeds, *flags])
        return len(ran)

    return run


def test_each_adapter_is_taught_its_own_edits_and_measured_beside_the_backbone(study, decoder_folder, capsys):
    assert study("--at_once", "3", methods=["LoRA", "FCLoRA"]) == 4
    taught = table("edits.csv")
    assert [(row["method"], row["edit"]) for row in taught] == [
        (method, str(number)) for method in ("LoRA", "FCLoRA") for number in range(5)
    ]
    assert len(table("unrelated.csv")) == 4 * 5
    # By transformers alone: the backbone, and the second adapter.
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder_folder())
    base = transformers.AutoModelForCausalLM.from_pretrained(decoder_folder())
    second = load(FOLDER / "LoRA/seed_0/batch_1/checkpoints/last.ckpt").model
    for model, row, suffix in ((base, taught[4], " before"), (second, taught[4], "")):
        given, said = (
            tokenizer(EDITS[4]["prompt"])["input_ids"],
            tokenizer(" hill", add_special_tokens=False)["input_ids"],
        )
        with torch.no_grad():
            held = model(torch.tensor([[*given, *said]])).logits.log_softmax(-1)[0, len(given) - 1 : -1]
        expected = float(held[torch.arange(len(said)), said].sum())
        assert float(row[f"log p(new){suffix}"]) == pytest.approx(expected, abs=1e-4)
    summary = {row["method"]: row for row in table("table.csv")}
    shares = [float(row["either"]) for row in taught if row["method"] == "LoRA"]
    assert float(summary["LoRA"]["success mean"]) == pytest.approx(sum(shares) / 5)
    assert "success difference mean" in summary["FCLoRA"]
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not [part for part in ('src="', "<link", "@import", 'href="http', "url(http") if part in html]
    assert "success, cats" in html
    assert "edit success" in capsys.readouterr().out
    answers = (FOLDER / "LoRA/seed_0/batch_0/answers.json").stat()
    assert study("--at_once", "3", methods=["LoRA", "FCLoRA"]) == 0
    assert (FOLDER / "LoRA/seed_0/batch_0/answers.json").stat().st_mtime_ns == answers.st_mtime_ns


def test_what_fails_is_one_line_and_the_same_command_goes_on(study, capsys, monkeypatch):
    original = fitting.fit
    with monkeypatch.context() as patch:
        patch.setattr(
            fitting, "fit", lambda planned, *args: 1 if planned.folder.match("batch_1") else original(planned, *args)
        )
        with pytest.raises(SystemExit) as stopped:
            study("--at_once", "3")
    assert stopped.value.code == 1
    assert "failed: 2 of 2: LoRA, seed 0, edits 4 to 5; the same command" in capsys.readouterr().out
    assert [row["edit"] for row in table("edits.csv")] == ["0", "1", "2"]
    assert study("--at_once", "3") == 1
    assert len(table("edits.csv")) == 5
    Path("set/train.jsonl").write_text(lines(EDITS[::-1]), encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        study("--at_once", "3")
    assert stopped.value.code == 2
    assert "batch_0 has a run of other settings" in capsys.readouterr().err


def test_without_prompts_of_their_own_facts_that_are_not_edited_stay(study):
    Path("set/unrelated.jsonl").unlink()
    study("--edits", "3")
    assert [(row["prompt"], row["answer"]) for row in table("unrelated.csv")] == [
        (edit["prompt"], " mat") for edit in EDITS[3:]
    ]
