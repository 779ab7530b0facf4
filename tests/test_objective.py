"""The objective of a step: a mean over all that it scores, however it is cut."""

import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from conftest import scalars
from lit_spectral.datamodules import MaskedText
from task_rows import data_modules

from lit_spectral import tasks
from lit_spectral.methods import LoRA


class FixedMasks(MaskedText):
    """Masks of training rows that depend on the row alone, as those of evaluation do."""

    def collate(self, rows):
        trainer, self.trainer = self.trainer, None
        try:
            return super().collate(rows)
        finally:
            self.trainer = trainer


@pytest.fixture(scope="module")
def data(mrpc_folder, tmp_path_factory):
    """From a task and the size of a batch to rows that hold unequal numbers of scored tokens."""
    root = tmp_path_factory.mktemp("uneven")
    prompts, lines = [(1, 1 + 5 * (i % 4)) for i in range(8)], [2 + 4 * i for i in range(16)]
    return data_modules(root, mrpc_folder, prompts, lines, asked=(8, 12), stride=2, masked=FixedMasks)


class InOrder(pl.Callback):
    """Trains on the first rows as they lie, and keeps the gradients of the first step."""

    def __init__(self, count):
        self.count = count

    def on_fit_start(self, trainer, pl_module):
        data, size = trainer.datamodule, trainer.datamodule.batch_size
        for module in pl_module.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        rows = [data.splits["train"][i] for i in range(self.count)]
        data.train_dataloader = lambda: torch.utils.data.DataLoader(rows, size, collate_fn=data.collate)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients = {n: p.grad.clone() for n, p in pl_module.model.named_parameters() if p.grad is not None}
        self.value = float(pl_module._objective.value)


def first_step(kind, folder, data, tmp_path, batch_size, accumulated, count=7):
    pl.seed_everything(0)
    task = getattr(tasks, kind)(folder, LoRA(rank=4))
    seen = InOrder(count)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, accumulate_grad_batches=accumulated, callbacks=[seen],
        default_root_dir=tmp_path, limit_val_batches=0, log_every_n_steps=1,
        logger=pl.loggers.TensorBoardLogger(tmp_path),
        **dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False),
    )  # fmt: skip
    trainer.fit(task, data(kind, batch_size))
    return seen, trainer


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    ours, theirs = (torch.cat([tensors[name].flatten() for name in expected]) for tensors in (found, expected))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


KINDS = {"SequenceClassification": "bert", "QuestionAnswering": "bert", "MaskedLM": "bert", "CausalLM": "llama"}


@pytest.mark.parametrize(("batch_size", "accumulated"), [(1, 7), (2, 4), (3, 3), (2, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_in_micro_batches_as_in_one(
    kind, batch_size, accumulated, data, backbone_folder, decoder_folder, tmp_path
):
    folder = decoder_folder() if kind == "CausalLM" else backbone_folder(KINDS[kind])
    whole, _ = first_step(kind, folder, data, tmp_path, 7, 1)
    cut, trainer = first_step(kind, folder, data, tmp_path, batch_size, accumulated)
    assert_alike(cut.gradients, whole.gradients)
    assert cut.value == pytest.approx(whole.value, rel=1e-5)
    assert scalars(trainer)["train/loss"] == [(0, pytest.approx(whole.value, rel=1e-5))]


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_two_processes_step_as_one(accumulated, data, decoder_folder, tmp_path):
    whole, _ = first_step("CausalLM", decoder_folder(), data, tmp_path, 8, 1, count=8)
    script = (
        "import sys, torch, lightning.pytorch as pl\n"
        "from lit_spectral.datamodules import PromptedText\n"
        "from lit_spectral.methods import LoRA\n"
        "from lit_spectral.tasks import CausalLM\n"
        "class Keep(pl.Callback):\n"
        "    def on_before_optimizer_step(self, trainer, task, optimizer):\n"
        "        if trainer.is_global_zero:\n"
        "            found = {n: p.grad for n, p in task.model.named_parameters() if p.grad is not None}\n"
        "            torch.save((found, task._objective.value), 'found.pt')\n"
        "folder, rows, accumulated = sys.argv[1], sys.argv[2], int(sys.argv[3])\n"
        "pl.seed_everything(0)\n"
        "trainer = pl.Trainer(accelerator='cpu', devices=2, strategy='ddp', max_steps=1, logger=False,\n"
        "    enable_checkpointing=False, callbacks=[Keep()], limit_val_batches=0,\n"
        "    accumulate_grad_batches=accumulated)\n"
        "data = PromptedText(rows, '{q}', '{a}', batch_size=4 // accumulated, max_length=40)\n"
        "trainer.fit(CausalLM(folder, LoRA(rank=4)), data)\n"
    )
    (tmp_path / "step.py").write_text(script)
    command = [sys.executable, "step.py", decoder_folder(), data("CausalLM", 8).path, str(accumulated)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=240, capture_output=True)
    found, value = torch.load(tmp_path / "found.pt")
    assert float(value) == pytest.approx(whole.value, rel=1e-5)
    assert_alike(found, whole.gradients)
