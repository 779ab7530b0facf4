"""Runs that would train on nothing, or train nothing, are refused or stopped."""

import json
import shutil
from contextlib import suppress

import lightning.pytorch as pl
import pytest
import safetensors.torch
import torch
from conftest import Watch
from lightning.pytorch.strategies import ModelParallelStrategy
from lit_spectral.datamodules import GLUE

from lit_spectral.adapters import adapters
from lit_spectral.adapters.stacking import stack_factors
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, HiPLoRA, LoRA, PiSSA
from lit_spectral.tasks import SequenceClassification


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_a_backbone_without_tokenizer_files_is_refused(backbone_folder, mrpc_folder, tmp_path, architecture):
    for file in ("config.json", "model.safetensors"):
        shutil.copy(f"{backbone_folder(architecture)}/{file}", tmp_path)
    data = GLUE("mrpc", mrpc_folder)
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, logger=False)
    with pytest.raises(InputError, match=r"^backbone: .*tokenizer"):
        trainer.fit(SequenceClassification(str(tmp_path), LoRA()), data)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(backbone_folder, tmp_path, train, value):
    folder = shutil.copytree(backbone_folder("bert"), tmp_path / "damaged")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("key.weight"))
    weights[name][0, 0] = value
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"^backbone: \S*key\.weight in the files of .* is not finite"):
        train(LoRA(), task=SequenceClassification(str(folder), LoRA()))


class Poison(pl.Callback):
    """Makes the gradients of one parameter NaN."""

    def on_after_backward(self, trainer, pl_module):
        next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(torch.nan)


class PoisonLater(Poison):
    """From the second step on, so that the first epoch has one that counts."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step:
            super().on_after_backward(trainer, pl_module)


def test_a_run_of_skipped_steps_ends_before_a_checkpoint_is_written(train, tmp_path):
    with pytest.raises(InputError, match=r"^fit: all 8 steps were skipped"):
        train(FCLoRA(), Poison(), enable_checkpointing=True)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_many_skipped_steps_in_a_row_end_a_run_and_name_the_parameter(train):
    with pytest.raises(InputError, match=r"^fit: the gradient was not finite in 25 steps in a row, of \S+ first; give"):
        train(FCLoRA(), PoisonLater(), max_epochs=10)


def test_a_strategy_that_shards_nothing_here_is_refused(train):
    with pytest.raises(InputError, match=r"^trainer.strategy: ModelParallelStrategy would train a model of its own"):
        train(LoRA(), strategy=ModelParallelStrategy())


def test_rows_longer_than_the_positions_of_a_backbone_are_refused(backbone_folder, tmp_path, mrpc_folder):
    folder = shutil.copytree(backbone_folder("bert"), tmp_path / "short")
    config = (
        (folder / "config.json").read_text().replace('"max_position_embeddings": 64', '"max_position_embeddings": 9')
    )
    (folder / "config.json").write_text(config)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("position_embeddings.weight"))
    weights[name] = weights[name][:9].clone()
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, logger=False)
    with pytest.raises(InputError, match=r"^data.max_length: a row has \d+ tokens, and the backbone has 9 positions"):
        trainer.fit(SequenceClassification(str(folder), LoRA()), GLUE("mrpc", mrpc_folder))


HELD = {
    "LoRA": LoRA(rank=4, ball=0.5),
    "PiSSA": PiSSA(rank=4, ball=0.5),
    "FCLoRA": FCLoRA(rank=4, ball=0.5),
    "FCLoRA by Gram-Schmidt": FCLoRA(rank=4, ball=0.5, orthogonality="gram-schmidt"),
    "HiPLoRA": HiPLoRA(rank=4, principal_rank=4, ball=0.5),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.01])
@pytest.mark.parametrize("lr", [1e3, pytest.param(1e8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", HELD.values(), ids=HELD)
def test_where_the_optimizer_diverges_the_ball_is_held_or_the_run_ends(backbone_folder, train, method, lr, decay):
    def optimizer(params):
        return torch.optim.AdamW(params, lr=lr, weight_decay=decay)

    task = SequenceClassification(backbone_folder("bert"), method, optimizer=optimizer)
    norms = []

    def look(task):
        for adapter in adapters(task.model):
            (left,), (right,) = stack_factors([adapter.factors()])
            norms.append(float(torch.linalg.matrix_norm(left.detach().double() @ right.detach().double(), ord=2)))

    with suppress(InputError):
        train(method, Watch(look), task=task)
    assert norms
    assert max(norms) <= 0.5 * (1 + 1e-3)


def test_a_row_with_a_token_that_the_backbone_has_not_is_refused(backbone_folder, mrpc_folder, tmp_path):
    """Also where rows go one by one, so that none is padded."""
    folder = shutil.copytree(backbone_folder("bert"), tmp_path / "mixed")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["the"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, logger=False)
    data = GLUE("mrpc", mrpc_folder, batch_size=1, eval_batch_size=1)
    with pytest.raises(InputError, match=r"^data.tokenizer: its token 'the' is number 5000, and the backbone has 64"):
        trainer.fit(SequenceClassification(str(folder), LoRA()), data)
