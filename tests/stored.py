"""Checkpoints of tasks whose trained tensors have been moved at random, without a fit."""

import lightning.pytorch as pl
import torch
from conftest import move

from lit_spectral.tasks import CausalLM, MaskedLM, QuestionAnswering, SequenceClassification

ROWS = torch.arange(5, 37).view(4, 8)
# From a name to a task and an architecture of it.
TASKS = {
    "classes, BERT": (SequenceClassification, "bert"),
    "classes, Llama": (SequenceClassification, "llama"),
    "answers, DeBERTa": (QuestionAnswering, "deberta"),
    "masked, MPNet": (MaskedLM, "mpnet"),
    "next, Llama": (CausalLM, "llama"),
    "next, GPT-2": (CausalLM, "gpt2"),
}


def task_of(name, method, folder, **settings):
    """A task with a model, all that it trains moved; `folder` goes from an architecture to a backbone's."""
    kind, architecture = TASKS[name]
    own = {"num_labels": 3, "metrics": ["accuracy"]} if kind is SequenceClassification else {}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        task = kind(folder(architecture), method, **own, **settings)
        task.configure_model()
        move(task.model, 0.05)
    return task.eval()


def store(task, path):
    """Write its checkpoint; returns the path."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", enable_model_summary=False, default_root_dir=path.parent, **quiet)
    trainer.strategy.connect(task)
    task.trainer = trainer
    trainer.save_checkpoint(path, weights_only=True)
    return str(path)


@torch.no_grad()
def outputs(model):
    """What a transformers model computes for a few rows."""
    found = model.eval()(input_ids=ROWS, attention_mask=torch.ones_like(ROWS))
    return torch.cat([found.start_logits, found.end_logits]) if "start_logits" in found else found.logits


def assert_near(found, expected, error=1e-5):
    assert (found - expected).norm() <= error * expected.norm()
