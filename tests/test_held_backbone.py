"""The backbone in bfloat16 under bf16-mixed: the same numbers, and every bit back afterwards."""

import lightning.pytorch as pl
import pytest
import torch
import transformers
from conftest import Watch, scalars
from lit_spectral.callbacks import HeldBackbone
from torch import nn

from lit_spectral.adapters import adapters, fold, unfold
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, FullFineTuning, HiPLoRA, LoRA, Peft

METHODS = {
    "LoRA": LoRA(rank=4),
    "FCLoRA": FCLoRA(rank=4, principal_rank=6),
    "HiPLoRA": HiPLoRA(rank=4, principal_rank=6),
    "FullFineTuning": FullFineTuning(),
    "DoRA": Peft(config={"peft_type": "LORA", "r": 4, "use_dora": True}),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_training_is_the_same_to_the_bit(train, method):
    losses = [
        scalars(train(method, HeldBackbone(enabled), precision="bf16-mixed", max_epochs=1))["train/loss"]
        for enabled in (True, False)
    ]
    assert losses[0] == losses[1]


def test_it_comes_by_itself_and_the_weights_come_back(train, backbone_folder):
    dtypes = set()
    trainer = train(
        LoRA(rank=4), Watch(lambda task: dtypes.update(a.weight.dtype for a in adapters(task.model))),
        precision="bf16-mixed",
    )  # fmt: skip
    assert dtypes == {torch.bfloat16}
    before = transformers.AutoModel.from_pretrained(backbone_folder("bert"), add_pooling_layer=False)
    after = {
        name.replace(".base_layer", "").split("bert.")[-1]: p
        for name, p in trainer.lightning_module.model.named_parameters()
    }
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.named_parameters())


def test_callbacks_find_float32_weights_when_training_ends(train):
    class Fold(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            before = [a.weight.clone() for a in adapters(pl_module.model)]
            fold(pl_module.model)
            unfold(pl_module.model)
            self.same = all(torch.equal(a.weight, b) for a, b in zip(adapters(pl_module.model), before, strict=True))
            self.dtypes = {weight.dtype for weight in before}

    callback = Fold()
    train(LoRA(rank=4), callback, precision="bf16-mixed", max_steps=2)
    assert callback.same
    assert callback.dtypes == {torch.float32}


def test_a_held_model_refuses_to_be_folded(train):
    with pytest.raises(InputError, match="is held in bfloat16 while it trains"):
        train(LoRA(rank=4), Watch(lambda task: fold(task.model)), precision="bf16-mixed", max_steps=2)


def test_in_float32_nothing_is_rounded(train):
    train(LoRA(rank=4), Watch(lambda task: [check(a.weight.dtype) for a in adapters(task.model)]), max_steps=1)


def check(dtype):
    assert dtype == torch.float32


def test_every_bit_comes_back_where_rounding_is_a_tie_too():
    layer = nn.Linear(64, 4096).requires_grad_(False)
    bits = torch.randint(-(2**31), 2**31 - 1, layer.weight.shape, dtype=torch.int64).to(torch.int32)
    bits[:, ::2] = (bits[:, ::2] & ~0xFFFF) | 0x8000  # half way between two
    layer.weight.data = torch.where(bits.view(torch.float32).abs() < 1e38, bits.view(torch.float32), 1.0)
    before = layer.weight.clone()
    held = HeldBackbone()
    held.hold(nn.Sequential(layer))
    assert torch.equal(layer.weight, before.bfloat16())
    held.release()
    assert torch.equal(layer.weight.view(torch.int32), before.view(torch.int32))


def test_a_shared_weight_and_a_trained_one_are_left_alone():
    shared, trained = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8)
    embedding = nn.Embedding(8, 8).requires_grad_(False)
    shared.weight = embedding.weight
    HeldBackbone().hold(nn.Sequential(embedding, shared, trained))
    assert {p.dtype for p in (shared.weight, trained.weight, trained.bias)} == {torch.float32}
    assert shared.bias.dtype == torch.bfloat16
