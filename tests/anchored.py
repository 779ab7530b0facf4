"""Fits whose model is held near its base model."""

import functools

import lightning.pytorch as pl
import pytest
import torch
import transformers
from conftest import WORDS
from task_rows import data_modules

from lit_spectral import tasks
from lit_spectral.methods import LoRA


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text of eight lines of 12 words."""
    generator = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=generator)) for _ in range(8)]
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def data(mrpc_folder, tmp_path_factory):
    prompts, lines = [(2 + i % 5, 1 + i % 4) for i in range(16)], [4 + i % 9 for i in range(40)]
    return data_modules(tmp_path_factory.mktemp("rows"), mrpc_folder, prompts, lines, asked=(8, 12), stride=4)


@pytest.fixture(scope="session")
def headless_folder(backbone_folder, tmp_path_factory):
    """An encoder whose files have no masked-language head."""
    folder = tmp_path_factory.mktemp("headless")
    transformers.AutoModel.from_pretrained(backbone_folder("bert")).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(backbone_folder("bert")).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def anchored(data, backbone_folder, decoder_folder, headless_folder, tmp_path):
    """Fit a task with an anchor, by default LoRA at a rate that moves it far; returns the trainer."""

    def run(kind, anchor, *callbacks, head=True, batch_size=8, lr=0.05, ckpt_path=None, made=None, **options):
        folder = decoder_folder() if kind == "CausalLM" else backbone_folder("bert") if head else headless_folder
        pl.seed_everything(0)
        optimizer = functools.partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)
        made = {"method": LoRA(rank=4)} | (made or {})
        task = getattr(tasks, kind)(folder, optimizer=optimizer, anchor=anchor, **made)
        quiet = ["enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
        settings = {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0, "log_every_n_steps": 1}
        settings |= {"logger": pl.loggers.TensorBoardLogger(tmp_path), "default_root_dir": tmp_path}
        trainer = pl.Trainer(callbacks=list(callbacks), **dict.fromkeys(quiet, False) | settings | options)
        trainer.fit(task, data(kind, batch_size), ckpt_path=ckpt_path)
        return trainer

    return run
