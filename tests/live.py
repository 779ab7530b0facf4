"""Adapters of every kind as `lit_spectral.load` takes them, with what their models compute: fixtures and helpers."""

import lightning.pytorch as pl
import peft
import pytest
import torch
import transformers
from conftest import move
from exporting import LOW_RANK, OTHERS, adapted, logits, update_of
from test_methods import OURS, PEFT

from lit_spectral.methods import Peft
from lit_spectral.tasks import CausalLM, QuestionAnswering, SequenceClassification
from lit_spectral.updates import Update

METHODS = LOW_RANK | OTHERS
WITH_CHANGES = OURS | {name: PEFT[name] for name in ("DoRA", "FourierFT")}
WITH_CHANGES["IA3"] = Peft(config={"peft_type": "IA3", "target_modules": ["value"], "feedforward_modules": []})


@pytest.fixture
def given(base):
    """An update of a model's name, by a method, and the logits of the model that it was taken of."""

    def make(name="BERT", method="LoRA", seed=1, **other):
        model, whole = adapted(name, METHODS[method], seed)
        update = update_of(model, whole, base(name))
        labels = dict(model.config.id2label)
        origin = {**update.origin, "config_labels": labels, **other}
        return Update(update.changes, update.whole, update.backbone, "", origin), logits(model)

    return make


def same(one, other):
    assert one.changes.keys() == other.changes.keys()
    for path, delta in one.changes.items():
        assert all(map(torch.equal, delta.tensors(), other.changes[path].tensors())), path
    assert one.whole.keys() == other.whole.keys()
    assert all(torch.equal(tensor, other.whole[name]) for name, tensor in one.whole.items())
    assert one.origin["architecture"] == other.origin["architecture"]


TASKS = {
    "bert": (SequenceClassification, {"num_labels": 3, "metrics": ["accuracy"], "label_names": ["no", "yes", "so"]}),
    "roberta": (QuestionAnswering, {}),
    "llama": (CausalLM, {}),
    "gpt2": (SequenceClassification, {"num_labels": 1, "metrics": ["pearson"]}),
}


ROWS = {"input_ids": torch.arange(5, 37).view(4, 8), "attention_mask": torch.ones(4, 8, dtype=torch.long)}


@pytest.fixture
def moved(backbone_folder):
    """A task whose adapters and head have been moved from where they start."""

    def make(method, architecture="bert"):
        torch.manual_seed(0)
        kind, settings = TASKS[architecture]
        task = kind(backbone_folder(architecture), method, **settings)
        task.configure_model()
        move(task.model, 0.05)
        return task.eval()

    return make


@pytest.fixture
def checkpoint(moved, tmp_path):
    """A checkpoint, and the task that wrote it."""

    def make(method):
        task = moved(method)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        batch = ROWS | {"labels": torch.ones(4, dtype=torch.long)}
        trainer.fit(task, torch.utils.data.DataLoader([batch], batch_size=None))
        trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
        return tmp_path / "last.ckpt", task.eval()

    return make


@torch.no_grad()
def outputs(model):
    return torch.cat([tensor.flatten() for tensor in model(**ROWS).values() if isinstance(tensor, torch.Tensor)])


THEIRS = {
    "LoRA": {"r": 4},
    "LoRA with biases": {"r": 4, "bias": "all"},
    "DoRA": {"r": 4, "use_dora": True},
    "DoRA with biases": {"r": 4, "use_dora": True, "bias": "all"},
    "LoRA with biases of its own": {"r": 4, "lora_bias": True},
    "LoHa": {"peft_type": "LOHA", "r": 3},
    "IA3, which scales biases": {"peft_type": "IA3", "feedforward_modules": []},
}
KINDS = {
    "bert, 3 classes": ("whole", "SEQ_CLS", "SequenceClassification", ["query", "value"], {"num_labels": 3}),
    "bert, tokens": ("whole", "TOKEN_CLS", "TokenClassification", ["query"], {"num_labels": 5}),
    "bert, features": ("whole", "FEATURE_EXTRACTION", "", ["query"], {}),
    "bert, no task": ("whole", None, "MaskedLM", ["query"], {}),
    "gpt2": ("gpt2", "CAUSAL_LM", "CausalLM", ["c_attn"], {}),
    "llama": ("llama", "CAUSAL_LM", "CausalLM", ["q_proj", "down_proj"], {}),
}


@pytest.fixture
def theirs(backbone_folder, tmp_path):
    """A folder that peft alone wrote, and its model."""
    # As those of BERT's authors, with a pooler, which peft doesn't take to be a part of the head.
    config = transformers.AutoConfig.from_pretrained(backbone_folder("bert"))
    transformers.BertForPreTraining(config).save_pretrained(tmp_path / "whole")

    def make(kind, **settings):
        torch.manual_seed(1)
        architecture, task, auto, targets, how = KINDS[kind]
        auto = getattr(transformers, f"AutoModelFor{auto}" if auto else "AutoModel")
        model = auto.from_pretrained(
            tmp_path / "whole" if architecture == "whole" else backbone_folder(architecture), **how
        )
        asked = {"task_type": task, "target_modules": targets, "peft_type": "LORA", **settings}
        config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[asked.pop("peft_type")](**asked)
        wrapped = peft.get_peft_model(model, config)
        move(wrapped, 0.1)
        wrapped.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs", wrapped.eval()

    return make
