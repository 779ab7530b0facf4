"""`lit-spectral continual`: what is run after what, what is measured of it, and what is not run again."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import WORDS

from lit_spectral import cli
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


@pytest.fixture(scope="session")
def decoder(decoder_folder, tmp_path_factory):
    """A tiny decoder that reads windows of 256 tokens."""
    folder = shutil.copytree(decoder_folder(), tmp_path_factory.mktemp("decoder") / "llama")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 256}))
    return str(folder)


@pytest.fixture
def study(decoder, tmp_path, monkeypatch):
    """Run the verb with LoRA on two small stages, in this process; returns the subcommands that it ran."""
    monkeypatch.chdir(tmp_path)
    for stage, words in (("birds", WORDS[:8]), ("hills", WORDS[8:])):
        Path(stage).mkdir()
        for split in ("train", "validation"):
            rows = [{"q": f"{one} {other}", "a": other} for one, other in zip(words, reversed(words), strict=True)]
            Path(stage, f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path(f"{stage}.yaml").write_text(yaml.safe_dump(config(decoder, stage)))
    Path("text.txt").write_text("the cat sat on the mat\nthe dog ran over the hill\n" * 20)
    ran = []

    def inside(command):
        ran.append(command)
        try:
            cli.run(command) if command[0] == "fit" else VERBS[command[0]].run(command[1:])
        except (RuntimeError, InputError) as error:
            print("failed:", error)
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
