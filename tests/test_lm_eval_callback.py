"""Evaluation with the harness while a decoder trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import scalars
from harness_tasks import KINDS, checkpoint, data, quick, train, write  # noqa: F401 (fixtures)
from lit_spectral.callbacks import LMEvalCallback

from lit_spectral.adapters import trained_state
from lit_spectral.errors import InputError
from lit_spectral.evaluation.command import run
from lit_spectral.tasks import SequenceClassification


def test_training_with_the_callback_ends_in_the_same_bits(train, data):
    ends = []
    for callbacks in ([], [LMEvalCallback(KINDS, 1, str(data), limit=4)]):
        trainer = train(*callbacks)
        ends.append((trained_state(trainer.model.model), torch.get_rng_state()))
    (first, state), (second, other) = ends
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, other)


def test_the_callback_keeps_every_modules_mode(train, data):
    class Modes(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append([module.training for module in pl_module.modules()])

    seen = []
    inner = pl.Callback()
    inner.on_train_epoch_start = lambda trainer, pl_module: pl_module.model.lm_head.eval()
    train(inner, Modes(), LMEvalCallback(["tiny_choice"], 1, str(data), limit=2), Modes(), max_epochs=1)
    assert seen[0] == seen[1]
    assert True in seen[0]


def test_the_callback_logs_and_keeps_a_record(train, data):
    trainer = train(LMEvalCallback(["tiny_choice"], 1, str(data)))
    records = [json.loads(line) for line in (Path(trainer.log_dir) / "lm_eval.jsonl").read_text().splitlines()]
    assert [record["config"]["lit_spectral"]["step"] for record in records] == [4, 8]
    points = scalars(trainer)["lm_eval/tiny_choice/acc"]
    assert points == [
        (4 * (i + 1) - 1, pytest.approx(r["results"]["tiny_choice"]["acc,none"])) for i, r in enumerate(records)
    ]


def test_the_callback_evaluates_at_the_end_alone(train, data):
    trainer = train(LMEvalCallback(["tiny_choice"], include_path=str(data)))
    assert [step for step, _ in scalars(trainer)["lm_eval/tiny_choice/acc"]] == [7]


def test_the_callback_scores_what_evaluate_scores(train, data, tmp_path):
    trainer = train(LMEvalCallback(["tiny_text"], include_path=str(data)))
    out = tmp_path / "results.json"
    path = trainer.checkpoint_callback.best_model_path
    run(["--checkpoint", path, "--tasks", "tiny_text", "--include_path", str(data), "--output_path", str(out)])
    (found,) = scalars(trainer)["lm_eval/tiny_text/word_perplexity"]
    expected = json.loads(out.read_text())["results"]["tiny_text"]["word_perplexity,none"]
    assert found[1] == pytest.approx(expected, rel=1e-5)


def test_the_callback_refuses_what_is_no_decoder(backbone_folder, mrpc_folder, data):
    from lit_spectral.datamodules import GLUE

    trainer = pl.Trainer(callbacks=[LMEvalCallback(["tiny_choice"], include_path=str(data))], logger=False)
    with pytest.raises(InputError, match="decoders"):
        trainer.fit(SequenceClassification(backbone_folder("bert")), GLUE("mrpc", mrpc_folder))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_evaluate_once_and_end_alike(strategy, data, decoder_folder, tmp_path):
    script = (
        "import sys, torch, lightning.pytorch as pl\n"
        "from lit_spectral.callbacks import LMEvalCallback\n"
        "from lit_spectral.datamodules import PromptedText\n"
        "from lit_spectral.adapters import trained_state\n"
        "from lit_spectral.methods import LoRA\n"
        "from lit_spectral.tasks import CausalLM\n"
        "data, backbone, strategy = sys.argv[1:]\n"
        "pl.seed_everything(0)\n"
        "task = CausalLM(backbone, LoRA(rank=2, dropout=0.3))\n"
        "trainer = pl.Trainer(max_epochs=2, accelerator='cpu', strategy=strategy, devices=2, default_root_dir='.',\n"
        "    enable_progress_bar=False, callbacks=[LMEvalCallback(['tiny_choice'], 1, data, limit=4)])\n"
        "rows = PromptedText(data, '{question} ', '{reply}', validation_rows=8, batch_size=4, max_length=32)\n"
        "trainer.fit(task, rows)\n"
        "torch.save(trained_state(task.model), f'rank{trainer.global_rank}.pt')\n"
    )
    (tmp_path / "train.py").write_text(script)
    subprocess.run(
        [sys.executable, "train.py", str(data), decoder_folder(), strategy],
        cwd=tmp_path, check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    (records,) = tmp_path.glob("**/lm_eval.jsonl")
    assert len(records.read_text().splitlines()) == 2
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
