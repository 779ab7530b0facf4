"""Small tasks of the harness over local files, and a decoder trained for them: fixtures."""

import json

import lightning.pytorch as pl
import pytest
import torch
import yaml
from conftest import WORDS
from lit_spectral.datamodules import PromptedText

from lit_spectral.methods import LoRA
from lit_spectral.tasks import CausalLM


def words(count, start):
    return " ".join(WORDS[(start * 5 + i * i) % len(WORDS)] for i in range(count))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with `train` to learn from, and the YAMLs and rows of one harness task of each kind."""
    folder = tmp_path_factory.mktemp("evaluation")
    write(folder / "train.jsonl", [{"question": words(4, i), "reply": words(3, i + 1)} for i in range(40)])
    rows = [
        {"given": words(5, i), "choices": [words(2 + j, i + j) for j in range(3)], "gold": i % 3} for i in range(12)
    ]
    write(folder / "rows.jsonl", rows)
    local = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
    }
    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    perplexity = {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    match = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    choice = {"doc_to_text": "{{given}}", "doc_to_choice": "choices", "doc_to_target": "gold"}
    kinds = {
        "tiny_choice": {"output_type": "multiple_choice", **choice, "metric_list": [accuracy]},
        "tiny_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{given}}",
            "metric_list": [perplexity],
        },
        "tiny_generation": {
            "output_type": "generate_until",
            "doc_to_text": "{{given}}",
            "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": ["cat"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [match],
        },
    }
    for name, config in kinds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **local, **config}))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No description of the machine, for which the harness starts a dozen programs."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


KINDS = ["tiny_choice", "tiny_text", "tiny_generation"]


@pytest.fixture
def train(data, decoder_folder, tmp_path):
    """Fit a tiny decoder with dropout for two epochs; returns the trainer."""

    def fit(*callbacks, method=None, **options):
        pl.seed_everything(0)
        task = CausalLM(
            decoder_folder(),
            method or LoRA(rank=2, dropout=0.3),
            optimizer=lambda params: torch.optim.AdamW(params, lr=0.05),
        )
        trainer = pl.Trainer(
            **{"max_epochs": 2, "accelerator": "cpu", "callbacks": list(callbacks), "default_root_dir": tmp_path}
            | {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
            | {"logger": pl.loggers.TensorBoardLogger(tmp_path)}
            | options
        )
        rows = PromptedText(str(data), "{question} ", "{reply}", validation_rows=8, batch_size=8, max_length=32)
        trainer.fit(task, rows)
        return trainer

    return fit


@pytest.fixture
def checkpoint(train):
    """From a method to a checkpoint of the decoder that it trained."""

    def made(method=None):
        return str(train(method=method).checkpoint_callback.best_model_path)

    return made
