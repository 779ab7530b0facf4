"""The protocols of others: prompts, rows and rates of the shipped configs, against what theirs say."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from torch.optim import SGD

from lit_spectral.lightning_cli import SpectralCLI
from lit_spectral.tasks.optimization import build_schedule, parameter_groups

CONFIGS = Path(__file__).parents[1] / "configs"


def settled(name, *flags):
    return SpectralCLI([f"--config={CONFIGS / name}", "--trainer.accelerator=cpu", *flags], run=False)


@pytest.fixture
def metamath(tmp_path, monkeypatch, decoder_folder):
    """peft's comparison over rows of 1,290 to 1,309 characters, and one problem of GSM8K."""
    monkeypatch.chdir(tmp_path)
    query = "What is it?"
    rows = [{"query": query, "response": "x" * (1300 + k - len(query) - 1), "type": "GSM_SV"} for k in range(-10, 10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "How many?", "answer": "2\n#### 2"}))
    flags = [f"--data.{name}={tmp_path}" for name in ("path", "gsm8k")]
    flags += ["--data.validation_rows=1", "--data.max_new_tokens=4", f"--data.tokenizer={decoder_folder()}"]
    return settled("protocol_metamathqa.yaml", *flags), rows


def test_peft_s_prompt_is_what_is_to_be_answered(metamath):
    data = metamath[0].datamodule
    data.setup("test")
    assert list(data.splits["gsm8k"]["prompt"]) == ["Question: How many? Think step by step.\nAnswer:"]


def test_peft_s_prompt_stands_before_the_response_that_is_learned(metamath):
    data = metamath[0].datamodule
    data.setup("fit")
    tokenizer = data.tokenizer
    given = tokenizer("Question: What is it? Think step by step.\nAnswer:")["input_ids"]
    said = tokenizer("x" * 1279, add_special_tokens=False)["input_ids"]
    assert data.splits["train"][0]["input_ids"] == [*given, *said, tokenizer.eos_token_id]


def test_peft_s_rows_are_those_of_at_most_1300_characters(metamath):
    cli, rows = metamath
    cli.datamodule.setup("fit")
    kept = sum(len(cli.datamodule.splits[name]) for name in ("train", "val"))
    assert kept == sum(len(f"{row['query']} {row['response']}") <= 1300 for row in rows) == 11


def test_peft_scores_all_tokens(metamath):
    data = metamath[0].datamodule
    data.setup("fit")
    row = data.splits["train"][0]
    assert row["labels"] == row["input_ids"]


@pytest.mark.parametrize(
    ("name", "steps"),
    # Theirs round warm-up down, ours up: of PEFT-Arena's 780 steps both are 78.
    [("protocol_metamathqa.yaml", 5000), ("protocol_peft_arena_math.yaml", 4 * (50_000 // 256))],
)
def test_rates_are_those_of_transformers_cosine_with_a_tenth_of_warm_up(name, steps, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = settled(name).model

    def rates(schedule):
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        factor = schedule(optimizer).lr_lambdas[0]
        return [factor(step) for step in range(steps + 1)]

    options = (model.lr_scheduler, model.warmup_steps)
    ours = rates(lambda optimizer: build_schedule(*options, optimizer, steps, model.lr_scheduler_options))
    theirs = rates(lambda optimizer: transformers.get_cosine_schedule_with_warmup(optimizer, int(0.1 * steps), steps))
    assert ours == theirs
    middle = (steps + steps // 10) // 2
    assert ours[middle] == pytest.approx(0.5 * (1 + math.cos(math.pi * (middle - steps // 10) / (0.9 * steps))))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("protocol_metamathqa.yaml", {"lr": 1e-4, "weight_decay": 0.1, "betas": (0.9, 0.999)}),
        ("protocol_peft_arena_math.yaml", {"lr": 2e-4, "weight_decay": 0.01, "betas": (0.9, 0.95)}),
    ],
)
def test_every_factor_is_decayed_as_theirs_are(name, settings, monkeypatch, tmp_path, decoder_folder):
    monkeypatch.chdir(tmp_path)
    task = settled(name, f"--model.backbone={decoder_folder()}", "--model.method.rank=2").model
    task.configure_model()
    groups = parameter_groups(task.model, [], 1.0)
    assert all("weight_decay" not in group for group in groups)
    trained = sum(p.requires_grad for p in task.model.parameters())
    assert sum(len(group["params"]) for group in groups) == trained > 0
    optimizer = task.optimizer(groups)
    assert {key: tuple(v) if isinstance(v := optimizer.defaults[key], list) else v for key in settings} == settings
