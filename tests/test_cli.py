"""The command line, driven in this process or, where a second process is the point, in one of its own."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS
from lightning.pytorch.cli import LightningCLI

from lit_spectral import cli
from lit_spectral.adapters import adapters
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.verbs import LIGHTNING, SYNONYMS, VERBS


@pytest.mark.parametrize(
    ("config", "architecture", "maps"),
    [
        ("fclora_roberta_mrpc", "roberta", 12),
        ("fclora_deberta_mrpc_r8", "deberta", 12),
        ("hilora_roberta_mrpc", "bert", 12),
        # On every run one of each kind; the zoo has all of them.
        pytest.param("lora_roberta_mrpc", "mpnet", 12, marks=pytest.mark.slow),
        pytest.param("lora_roberta_mrpc", "distilbert", 12, marks=pytest.mark.slow),
        pytest.param("fclora_roberta_mrpc", "electra", 12, marks=pytest.mark.slow),
        ("fclora_roberta_mrpc", "albert", 6),  # one block, used twice
        pytest.param("fclora_roberta_mrpc", "gpt2", 8, marks=pytest.mark.slow),
        ("fclora_roberta_mrpc", "llama", 10),
    ],
)
def test_a_config_trains_on_every_architecture(fit, config, architecture, maps):
    done = fit(config, architecture=architecture)
    assert len(adapters(done.model.model)) == maps
    assert {"train/loss", "val/loss", "val/accuracy", "val/f1"} <= set(done.trainer.callback_metrics)
    assert torch.isfinite(done.trainer.callback_metrics["val/loss"])


def test_the_best_and_the_last_checkpoint_are_written_and_load(fit):
    done = fit("fclora_roberta_mrpc")
    folder = done.trainer.checkpoint_callback.dirpath
    assert sorted(os.listdir(folder)) == ["best.ckpt", "last.ckpt"]
    assert load(os.path.join(folder, "best.ckpt")).method == done.model.method


def test_another_method_over_a_yaml_drops_its_keys_and_says_so(fit, capfd):
    done = fit("fclora_roberta_mrpc", "--model.method=LoRA", "--model.method.rank=3")
    assert type(done.model.method).__name__ == "LoRA"
    assert done.model.method.rank == 3
    said = capfd.readouterr().err
    assert "FCLoRA" in said
    assert "sigma_bar" in said


def test_hidden_labels_can_be_predicted_but_not_tested(fit, mrpc_folder, tmp_path):
    hidden = tmp_path / "hidden"
    shutil.copytree(mrpc_folder, hidden)
    rows = [json.loads(line) | {"label": -1} for line in (hidden / "test.jsonl").read_text().splitlines()]
    (hidden / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = fit("fclora_roberta_mrpc").trainer.checkpoint_callback.best_model_path
    fit("fclora_roberta_mrpc", f"--data.path={hidden}", f"--ckpt_path={path}", command="predict")
    with pytest.raises(InputError, match="hidden"):
        fit("fclora_roberta_mrpc", f"--data.path={hidden}", command="test")


def test_validate_reads_a_checkpoint(fit):
    done = fit("fclora_roberta_mrpc")
    path = os.path.join(done.trainer.checkpoint_callback.dirpath, "last.ckpt")
    again = fit("fclora_roberta_mrpc", f"--ckpt_path={path}", command="validate")
    assert again.trainer.callback_metrics["val/loss"] == done.trainer.callback_metrics["val/loss"]


@pytest.fixture
def models_and_data(backbone_folder, mrpc_folder):
    """Flags of the MRPC config on tiny things."""
    config = CONFIGS / "fclora_roberta_mrpc.yaml"
    local = [f"--model.backbone={backbone_folder('roberta')}", f"--data.path={mrpc_folder}"]
    return [f"--config={config}", *local, "--trainer.accelerator=cpu"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.backbone=./nowhere"], "error: backbone: there is no folder ./nowhere"),
        (["--model.backbone=someone/nothing"], "give --model.backbone FOLDER"),
        (["--data.path=./nowhere"], "error: data.path: there is no folder ./nowhere"),
        (["--model.method.target_modules=[quary]"], "matches nothing in this model; its linear maps end in query (2)"),
        (["--model.method.rank=33"], "query: rank 33 is above the largest a 32 x 32 matrix can have"),
        (["--model.method.rank=0"], "rank must be at least 1"),
        (["--model.method.sigma_bar=-1.0"], "must be finite and above 0"),
        (["--model.method.sigma_bar=.inf"], "must be finite and above 0"),
        (["--data.batch_size=0"], "batch_size must be at least 1"),
        (["--model.metrics=[bleu]"], "bleu unknown; known are accuracy"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(models_and_data, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *models_and_data, *flags])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.fixture
def command(models_and_data):
    """The command line of a fit, for a process of its own."""
    flags = ["--trainer.enable_progress_bar=false", "--model.method.sigma_lr=500"]
    return [sys.executable, "-m", "lit_spectral", "fit", *models_and_data, *flags]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_a_checkpoint_that_loads_and_resumes(command, fit, tmp_path, number, status):
    process = subprocess.Popen(
        [*command, "--trainer.max_epochs=100000"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(number)
    assert process.wait(60) == status
    (path,) = tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt")
    step = torch.load(path, weights_only=True)["global_step"]
    assert step > 0
    load(path)
    limits = ["--trainer.max_epochs=-1", f"--trainer.max_steps={step + 2}"]
    done = fit("fclora_roberta_mrpc", f"--ckpt_path={path}", "--model.method.sigma_lr=500", *limits)
    assert done.trainer.global_step == step + 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_end_with_the_same_feasible_parameters(strategy, command, tmp_path):
    flags = [
        f"--trainer.strategy={strategy}",
        "--trainer.devices=2",
        "--trainer.max_steps=20",
        "--trainer.max_epochs=-1",
    ]
    script = (
        "import sys, torch; from lit_spectral import cli; from lit_spectral.adapters import trained_state, adapters\n"
        "done = cli.run(sys.argv[1:])\n"
        "torch.save(trained_state(done.model.model), f'rank{done.trainer.global_rank}.pt')\n"
        "assert done.trainer.global_step == 20 and done.trainer.world_size == 2\n"
        "for a in adapters(done.model.model):\n"
        "    assert 0 <= a.sigma.min() and a.sigma.max() <= a.sigma_bar\n"
        "assert any(a.sigma.max() == a.sigma_bar for a in adapters(done.model.model))\n"
    )
    (tmp_path / "train.py").write_text(script)
    subprocess.run(
        [sys.executable, "train.py", *command[3:], *flags],
        cwd=tmp_path, check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [path.name for path in tmp_path.glob("runs/*/[!.]*")] == ["version_0"]


def test_help_has_a_line_for_each_subcommand_and_loads_none():
    script = "import sys; from lit_spectral import cli; cli.main(['--help'])"
    heavy = "import atexit, sys; atexit.register(lambda: print(*{'torch', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{heavy}; {script}"], capture_output=True, text=True, check=True)
    *lines, loaded = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [*LIGHTNING, *VERBS]
    assert not loaded


def test_the_table_of_verbs_knows_lightnings_and_what_others_call_them():
    assert LIGHTNING.keys() == LightningCLI.subcommands().keys()
    assert set(SYNONYMS.values()) <= LIGHTNING.keys() | VERBS.keys()


@pytest.mark.parametrize("verb", [[], ["fit"], *([verb] for verb in VERBS)])
def test_help_is_shown_whatever_the_terminal_can_show(verb, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    with pytest.raises(SystemExit) as stop:
        cli.main([*verb, "--help"])
    sys.stdout.flush()
    assert not stop.value.code
    assert b"usage: lit-spectral" in shown.getvalue()


def test_a_run_without_logs_leaves_a_file_of_the_users_alone(fit, tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    fit("lora_roberta_mrpc", "--trainer.logger=false", "--trainer.max_steps=1", "--trainer.callbacks=null")
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_a_method_of_peft_is_a_line_of_yaml(fit):
    done = fit(
        "lora_roberta_mrpc",
        "--model.method=Peft",
        "--model.method.config={peft_type: LORA, r: 4, use_dora: true}",
        "--trainer.max_steps=2",
    )
    assert any("lora_magnitude_vector" in name for name, _ in done.model.model.named_parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's")
def test_a_process_of_several_ends_with_the_one_that_started_it():
    child = (
        "import time; from lit_spectral.cli import _end_with_starter\n"
        "_end_with_starter(); print(1, flush=True); time.sleep(60)"
    )
    parent = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], env=os.environ | {{'LOCAL_RANK': '1'}},\n"
        "                         stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        number = int(process.stdout.readline())
        process.kill()
    status = Path(f"/proc/{number}/stat")

    def lives():  # Z has ended, and nobody has asked yet
        return status.exists() and status.read_text(encoding="utf-8").split()[2] != "Z"

    deadline = time.monotonic() + 30
    while lives() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not lives()
