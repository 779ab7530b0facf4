"""configs/own_*.yaml: each trains, is validated and says what it should, on files of the kind that it names."""

import csv
import json
from pathlib import Path

import pytest
from conftest import CONFIGS, WORDS
from test_prompts import chatty  # noqa: F401 (a fixture)

from lit_spectral import cli

SHORT = [
    "--trainer.limit_train_batches=2",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--data.batch_size=4",
]
SHORT += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--data.max_length=32"]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def tickets():
    with Path("tickets.csv").open("w", encoding="utf-8", newline="") as file:
        teams = ("delivery", "payment", "product")
        csv.writer(file).writerows([("message", "team"), *((f"the {WORDS[n % 9]}", teams[n % 3]) for n in range(40))])


def instructions():
    rows = [{"instruction": f"the {WORDS[n % 9]}", "input": "sat" * (n % 2), "output": "on"} for n in range(28)]
    Path("instructions.jsonl").write_text(lines(rows), encoding="utf-8")


def chats():
    turns = [{"role": role, "content": "the cat"} for role in ("system", "user", "assistant", "user", "assistant")]
    Path("chats.jsonl").write_text(lines([{"messages": turns}] * 28), encoding="utf-8")


def texts():
    Path("texts").mkdir()
    for name in ("first", "second"):
        Path("texts", f"{name}.txt").write_text("the cat sat on the mat and then slept again\n" * 40, encoding="utf-8")


def kept():
    instructions()
    Path("keep.txt").write_text("the bird flew over the hill\n" * 40, encoding="utf-8")


# From a config to what makes its files, and flags that a tiny backbone needs besides.
OWN = {
    "own_csv": (tickets, []),
    "own_instructions": (instructions, []),
    "own_chat": (chats, []),
    "own_text": (texts, []),
    "own_retention": (kept, ["--trainer.callbacks.limit=2", "--trainer.callbacks.max_length=16"]),
}


@pytest.fixture
def backbone(backbone_folder, decoder_folder, chatty, tmp_path, monkeypatch):
    """A backbone of the kind that a config names; in an empty folder."""
    folder, save = chatty
    save()
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return lambda name: {"own_csv": backbone_folder("roberta"), "own_chat": str(folder)}.get(name, decoder_folder())


def test_the_table_has_all_of_them():
    assert {*OWN} == {file.stem for file in CONFIGS.glob("own_*.yaml")}


@pytest.mark.parametrize("name", OWN)
def test_a_config_trains_on_the_files_that_it_names(name, backbone):
    make, flags = OWN[name]
    make()
    model = f"--model.backbone={backbone(name)}"
    # Warm-up takes the first step, so that there must be two.
    each = ["--trainer.accumulate_grad_batches=1"] if name == "own_instructions" else []
    done = cli.run(["fit", f"--config=configs/{name}.yaml", model, *flags, *SHORT, *each])
    folder = Path("runs", name, "version_0", "checkpoints")
    assert {file.name for file in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    (monitored,) = {each.monitor for each in done.trainer.checkpoint_callbacks} - {None}
    fitted = done.trainer.callback_metrics[monitored]
    again = cli.run(
        ["validate", f"--config=configs/{name}.yaml", model, *SHORT[2:], f"--ckpt_path={folder / 'best.ckpt'}"]
    )
    assert again.trainer.callback_metrics[monitored] == pytest.approx(fitted)
