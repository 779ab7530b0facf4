"""What the base model makes of fixed texts is computed once, and stays what it was."""

import pytest
from conftest import ARCHITECTURES, move

from lit_spectral.methods import BitFit, FullFineTuning, LoRA, Peft
from lit_spectral.retention import Retention
from lit_spectral.retention.base_states import BaseStates
from lit_spectral.tasks import CausalLM, MaskedLM, SequenceClassification

METHODS = {
    "LoRA": LoRA(rank=2),
    "BitFit": BitFit(),
    "FullFineTuning": FullFineTuning(),
    "peft": Peft(config={"peft_type": "LORA", "r": 2, "target_modules": "all-linear"}),
}
DECODERS = ("gpt2", "llama")


@pytest.fixture
def build(backbone_folder, decoder_folder, text):
    def build(architecture, method, kind=None, **options):
        kind = kind or (CausalLM if architecture in DECODERS else MaskedLM)
        folder = (decoder_folder if kind is CausalLM else backbone_folder)(architecture)
        task = kind(folder, method, **({"num_labels": 2} if kind is SequenceClassification else {}))
        task.configure_model()
        return task, Retention({"words": text}, max_length=16, batch_size=4, **options)

    return build


def again(retention, task):
    """Measured, trained on, and measured by what is kept and from the beginning."""
    retention.prepare(task)
    first = retention.measure(task)
    move(task.model, 0.3)
    kept = retention.measure(task)
    retention.prepare(task)
    return first, kept, retention.measure(task)


PAIRS = [(architecture, "LoRA") for architecture in ARCHITECTURES] + [
    (architecture, method) for architecture in ("bert", "gpt2") for method in METHODS if method != "LoRA"
]


@pytest.mark.parametrize(("architecture", "method"), PAIRS)
def test_what_is_kept_measures_as_what_is_computed(architecture, method, build):
    first, kept, computed = again(*reversed(build(architecture, METHODS[method])))
    assert kept == computed
    assert kept["words/loss"] != first["words/loss"]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet", "albert"])
def test_under_a_head_that_is_not_the_task_s_too(architecture, build):
    _, kept, computed = again(*reversed(build(architecture, LoRA(rank=2), SequenceClassification)))
    assert kept == computed


@pytest.mark.parametrize("room", [0, 1 << 13, 1 << 30])  # none kept, some, all
def test_the_base_model_passes_a_batch_once_where_there_is_room(room, build, monkeypatch):
    task, retention = build("llama", LoRA(rank=2))
    retention.prepare(task)
    passes, batches = [], retention.count("words")
    monkeypatch.setattr(retention, "_base_states", BaseStates(room))
    task.model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    first, second = retention.measure(task), retention.measure(task)
    of_a_batch = 4 * 16 * 32 * 4  # rows, tokens, width, bytes
    assert batches > 1
    assert len(passes) == 4 * batches - min(batches, room // of_a_batch)
    assert first == second
    assert "forward" not in vars(task.model.model)
