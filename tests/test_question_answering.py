"""SQuAD: its scores by hand and beside torchmetrics', windows, and the task through the command line."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
import yaml
from squad_rows import SHORT, folder, questions, read, write  # noqa: F401 (fixtures)

from lit_spectral import cli
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA, Peft
from lit_spectral.scoring import squad
from lit_spectral.tasks import QuestionAnswering


@pytest.fixture(params=["bert", "deberta", "roberta", "mpnet"])
def task(request, backbone_folder):
    torch.manual_seed(0)
    made = QuestionAnswering(backbone_folder(request.param), LoRA(rank=2))
    made.configure_model()
    return made.eval()


@pytest.fixture
def batch():
    """Two windows of 12 and 9 tokens."""
    ids = torch.randint(5, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    places = {"start_positions": torch.tensor([5, 0]), "end_positions": torch.tensor([7, 0])}
    return {"input_ids": ids * mask, "attention_mask": mask} | places


def rows(batch, *numbers, width=None):
    return {name: t[list(numbers)][:, :width] if t.ndim > 1 else t[list(numbers)] for name, t in batch.items()}


def loss(task, batch):
    task.log = lambda *args, **kwargs: None
    with torch.no_grad():
        return float(task.training_step(batch, 0))


def test_the_loss_is_that_of_transformers(task, batch):
    whole = rows(batch, 0)
    with torch.no_grad():
        assert loss(task, whole) == pytest.approx(float(task.model(**whole).loss), rel=1e-5)


def test_padding_does_not_change_the_loss(task, batch):
    apart = loss(task, rows(batch, 0)), loss(task, rows(batch, 1, width=9))
    assert loss(task, batch) == pytest.approx(sum(apart) / 2, rel=1e-5)


def test_the_head_is_trained(task):
    assert task.model.qa_outputs.weight.requires_grad


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_learned_prompts_leave_the_positions_of_the_batch(backbone_folder, batch, peft_type):
    task = QuestionAnswering(backbone_folder("bert"), Peft(config={"peft_type": peft_type, "num_virtual_tokens": 4}))
    task.configure_model()
    start, end = task.eval()(batch)
    assert start.shape == end.shape == (2, 12)
    assert (start == torch.finfo(torch.float32).min).tolist() == (batch["attention_mask"] == 0).tolist()


@pytest.fixture(scope="session")
def reader_folder(backbone_folder, tmp_path_factory):
    """A tiny encoder whose files have a head for answers, so that it can be evaluated as it came."""
    path = tmp_path_factory.mktemp("readers") / "bert"
    shutil.copytree(backbone_folder("bert"), path)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.AutoModelForQuestionAnswering.from_pretrained(path).save_pretrained(path)
    return str(path)


@pytest.fixture
def command(folder, reader_folder, monkeypatch):
    """Run a subcommand on the folder with a tiny encoder; returns the LightningCLI."""
    config = {
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(folder), "name": "runs"},
            },
        },
        "model": {
            "class_path": "QuestionAnswering",
            "init_args": {
                "max_answer_length": 3,
                "backbone": reader_folder,
                "method": {"class_path": "LoRA", "init_args": {"rank": 2}},
            },
        },
        "data": {"class_path": "SQuAD", "init_args": {"path": str(folder), "batch_size": 4, **SHORT}},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(folder)
    return lambda name, *flags: cli.run([name, f"--config={folder / 'experiment.yaml'}", *flags])


def direct(done, threshold=0.0):
    """Predictions of the finished command's model, a window and a span at a time."""
    data, model = done.datamodule, done.model.model.eval()
    tokenizer, predictions = data.tokenizer, {}
    for row in questions(15, 1):
        encoded = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=40, stride=6,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        spans, nulls = [], []
        for window in range(len(encoded["input_ids"])):
            with torch.no_grad():
                out = model(**{name: torch.tensor([encoded[name][window]]) for name in ("input_ids", "attention_mask")})
            start, end = out.start_logits[0].tolist(), out.end_logits[0].tolist()
            nulls.append(start[0] + end[0])
            places, part = encoded["offset_mapping"][window], encoded.sequence_ids(window)
            for i, j in itertools.product(range(len(part)), repeat=2):
                if part[i] == part[j] == 1 and i <= j < i + 3:
                    spans.append((start[i] + end[j], row["context"][places[i][0] : places[j][1]]))
        score, text = max(spans)
        predictions[row["id"]] = "" if min(nulls) - score > threshold else text
    return predictions


@pytest.mark.parametrize("threshold", [-0.3, 0.0, 0.3])
def test_validate_scores_and_writes_the_predictions_of_whole_questions(command, folder, threshold):
    torch.manual_seed(0)
    done = command("validate", f"--model.null_threshold={threshold}")
    expected = direct(done, threshold)
    (written,) = folder.glob("runs/*/predictions_val.json")
    assert json.loads(written.read_text()) == expected
    answers = {row["id"]: row["answers"]["text"] for row in questions(15, 1)}
    scores = squad.score([expected[key] for key in answers], list(answers.values()), True)
    metrics = done.trainer.callback_metrics
    assert {name: float(metrics[f"val/{name}"]) for name in scores} == pytest.approx(scores, rel=1e-5)


def test_thresholds_answer_all_or_nothing(command):
    nothing = command("validate", "--model.null_threshold=-1000").trainer.callback_metrics
    assert (nothing["val/f1"], nothing["val/no_answer_f1"], nothing["val/has_answer_f1"]) == (
        pytest.approx(100 / 3), 100, 0,
    )  # fmt: skip
    assert command("validate", "--model.null_threshold=1000").trainer.callback_metrics["val/no_answer_f1"] == 0


def test_the_threshold_found_best_gives_the_score_it_promises(command):
    first = command("validate").trainer.callback_metrics
    threshold = str(float(first["val/best_f1_threshold"]) + 1e-6).replace("inf", ".inf")  # as YAML writes it
    again = command("validate", f"--model.null_threshold={threshold}").trainer.callback_metrics
    assert float(again["val/f1"]) == pytest.approx(float(first["val/best_f1"]), rel=1e-5)


def test_the_loss_is_a_mean_over_windows(command):
    done = command("validate", "--data.eval_batch_size=1")
    task = done.model.eval()
    apart = [loss(task, done.datamodule.collate([row])) for row in done.datamodule.splits["val"]]
    assert float(done.trainer.callback_metrics["val/loss"]) == pytest.approx(sum(apart) / len(apart), rel=1e-5)


def test_a_set_read_in_part_is_scored_by_the_windows_read(command, folder):
    command("validate", "--trainer.limit_val_batches=1", "--data.eval_batch_size=3")
    (written,) = folder.glob("runs/*/predictions_val.json")
    assert 1 <= len(json.loads(written.read_text())) <= 3


def test_v1_always_answers(command, folder):
    for split, seed in (("train", 0), ("validation", 1)):
        write(folder, split, [row for row in questions(15, seed) if row["answers"]["text"]])
    done = command("fit", "--data.version_2=false", "--model.null_threshold=-1000")
    metrics = {name for name in done.trainer.callback_metrics if name.startswith("val/")}
    assert metrics == {"val/loss", "val/exact_match", "val/f1"}
    command("validate", "--data.version_2=false", "--model.null_threshold=-1000")
    (written,) = folder.glob("runs/*/predictions_val.json")
    assert all(json.loads(written.read_text()).values())
    assert not list(folder.glob("runs/*/null_odds_val.json"))


@pytest.mark.parametrize("method", ["LoRA", "FCLoRA", "HiLoRA", "FullFineTuning"])
def test_fit_logs_and_a_checkpoint_rebuilds_the_task(command, folder, method, batch):
    done = command("fit", f"--model.method={method}")
    metrics = set(done.trainer.callback_metrics)
    assert (
        {"train/loss", "val/f1", "val/has_answer_f1", "val/no_answer_f1"} <= metrics == set(done.model.logged_metrics())
    )
    assert not list(folder.glob("runs/*/predictions_val.json"))
    (path,) = folder.glob("runs/*/checkpoints/*.ckpt")
    again = load(path)
    assert again.max_answer_length == 3
    with torch.no_grad():
        assert torch.equal(again(batch)[0], done.model.eval()(batch)[0])


def test_test_and_predict_use_the_test_split(command, folder):
    hidden = [{key: row[key] for key in ("id", "context", "question")} for row in questions(6, 2)]
    write(folder, "test", questions(6, 2))
    assert "test/f1" in command("test").trainer.callback_metrics
    (tested,) = folder.glob("runs/*/predictions_test.json")
    texts = json.loads(tested.read_text())
    tested.unlink()
    write(folder, "test", hidden)
    command("predict", "--seed_everything=42")
    (predicted,) = folder.glob("runs/*/predictions_test.json")
    assert json.loads(predicted.read_text()) == texts


def test_another_data_module_is_refused(command, mrpc_folder):
    with pytest.raises(InputError, match="GLUE is not for QuestionAnswering"):
        command("validate", "--data=GLUE", "--data.task=mrpc", f"--data.path={mrpc_folder}")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_together_score_every_question_once(strategy, command, folder):
    script = (
        "import sys, json; from lit_spectral import cli; trainer = cli.run(sys.argv[1:]).trainer\n"
        "assert trainer.world_size == 2\n"
        "metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}\n"
        "open(f'rank{trainer.global_rank}', 'w').write(json.dumps(metrics))\n"
    )
    (folder / "measure.py").write_text(script)
    flags = ["--config=experiment.yaml", f"--trainer.strategy={strategy}", "--trainer.devices=2", "--seed_everything=1"]
    subprocess.run(
        [sys.executable, "measure.py", "validate", *flags],
        cwd=folder, check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    expected = command("validate", "--seed_everything=1").trainer.callback_metrics
    for rank in (0, 1):
        found = json.loads((folder / f"rank{rank}").read_text())
        assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
