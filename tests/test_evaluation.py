"""lm-evaluation-harness on adapted decoders: equal to its own class on folded weights, and no trace in training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from conftest import WORDS, scalars
from lit_spectral.callbacks import LMEvalCallback
from lit_spectral.datamodules import PromptedText

from lit_spectral import cli
from lit_spectral.adapters import detach, fold, trained_state
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.evaluation import BENCHMARKS
from lit_spectral.evaluation.command import run
from lit_spectral.evaluation.harness import OURS, Tasks, evaluate, figures
from lit_spectral.methods import FCLoRA, LoRA
from lit_spectral.tasks import CausalLM, SequenceClassification


def words(count, start):
    return " ".join(WORDS[(start * 5 + i * i) % len(WORDS)] for i in range(count))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with `train` to learn from, and the YAMLs and rows of one harness task of each kind."""
    folder = tmp_path_factory.mktemp("evaluation")
    write(folder / "train.jsonl", [{"question": words(4, i), "reply": words(3, i + 1)} for i in range(40)])
    rows = [
        {"given": words(5, i), "choices": [words(2 + j, i + j) for j in range(3)], "gold": i % 3} for i in range(12)
    ]
    write(folder / "rows.jsonl", rows)
    local = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
    }
    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    perplexity = {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    match = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    choice = {"doc_to_text": "{{given}}", "doc_to_choice": "choices", "doc_to_target": "gold"}
    kinds = {
        "tiny_choice": {"output_type": "multiple_choice", **choice, "metric_list": [accuracy]},
        "tiny_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{given}}",
            "metric_list": [perplexity],
        },
        "tiny_generation": {
            "output_type": "generate_until",
            "doc_to_text": "{{given}}",
            "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": ["cat"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [match],
        },
    }
    for name, config in kinds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **local, **config}))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No description of the machine, for which the harness starts a dozen programs."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


KINDS = ["tiny_choice", "tiny_text", "tiny_generation"]


@pytest.fixture
def train(data, decoder_folder, tmp_path):
    """Fit a tiny decoder with dropout for two epochs; returns the trainer."""

    def fit(*callbacks, method=None, **options):
        pl.seed_everything(0)
        task = CausalLM(
            decoder_folder(),
            method or LoRA(rank=2, dropout=0.3),
            optimizer=lambda params: torch.optim.AdamW(params, lr=0.05),
        )
        trainer = pl.Trainer(
            **{"max_epochs": 2, "accelerator": "cpu", "callbacks": list(callbacks), "default_root_dir": tmp_path}
            | {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
            | {"logger": pl.loggers.TensorBoardLogger(tmp_path)}
            | options
        )
        rows = PromptedText(str(data), "{question} ", "{reply}", validation_rows=8, batch_size=8, max_length=32)
        trainer.fit(task, rows)
        return trainer

    return fit


@pytest.fixture
def checkpoint(train):
    """From a method to a checkpoint of the decoder that it trained."""

    def made(method=None):
        return str(train(method=method).checkpoint_callback.best_model_path)

    return made


def reference(checkpoint, data, folder):
    """The harness's own results on the folded model, loaded by its own class from files."""
    from lm_eval.models.huggingface import HFLM

    from lit_spectral import backbones

    task = load(checkpoint)
    fold(task.model)
    detach(task.model)
    task.model.save_pretrained(folder)
    backbones.load_tokenizer(task.backbone).save_pretrained(folder)
    model = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    return evaluate(model, Tasks(KINDS, str(data)), bootstrap_iters=0)


def samples(path):
    """Responses of every kind of task from the file that `--log_samples` leaves, in the order of the rows."""
    found = {name: [] for name in KINDS}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found[row["task"]].append((row["doc_id"], row["filtered_resps"]))
    return {name: [response for _, response in sorted(rows, key=lambda r: r[0])] for name, rows in found.items()}


def likelihoods(rows):
    """Log-likelihoods of all responses; those of choices come beside whether the choice is the likeliest."""
    return [float(r[0] if isinstance(r, (list, tuple)) else r) for responses in rows for r in responses]


@pytest.mark.parametrize(("method", "flags"), [(LoRA(rank=2), []), (FCLoRA(rank=2), ["--fold"])])
def test_evaluate_agrees_with_the_harness_on_the_folded_model(checkpoint, data, tmp_path, method, flags):
    path = checkpoint(method)
    expected = reference(path, data, tmp_path / "folded")
    out = tmp_path / "results.json"
    place = ["--include_path", str(data), "--output_path", str(out)]
    run(["--checkpoint", path, "--tasks", ",".join(KINDS), "--batch_size", "4", "--log_samples", *place, *flags])
    found = figures(json.loads(out.read_text()))
    assert found == pytest.approx(figures(expected), rel=1e-4)
    assert found["tiny_choice/acc"] == figures(expected)["tiny_choice/acc"]
    for name, ours in samples(tmp_path / "results.samples.jsonl").items():
        theirs = [row["filtered_resps"] for row in sorted(expected["samples"][name], key=lambda row: row["doc_id"])]
        if name == "tiny_generation":
            assert ours == theirs
        else:
            assert likelihoods(ours) == pytest.approx(likelihoods(theirs), rel=1e-4)


def test_a_checkpoint_scores_otherwise_than_its_backbone(checkpoint, data, decoder_folder, tmp_path):
    flags = ["--tasks", "tiny_text", "--include_path", str(data), "--output_path"]
    adapted = run(["--checkpoint", checkpoint(), *flags, str(tmp_path / "adapted.json")])
    base = run(["--backbone", decoder_folder(), *flags, str(tmp_path / "base.json")])
    first, second = (json.loads(file.read_text())["results"]["tiny_text"] for file in (adapted, base))
    assert first["word_perplexity,none"] != second["word_perplexity,none"]


@pytest.fixture
def evaluated(checkpoint, data):
    """The log folder of a run whose checkpoint was evaluated, and the JSON that this left."""
    path = checkpoint()
    file = run(["--checkpoint", path, "--tasks", "tiny_choice", "--include_path", str(data), "--seed", "7"])
    return os.path.dirname(os.path.dirname(path)), file


def test_results_lie_in_the_log_folder(evaluated):
    assert str(evaluated[1].parent) == os.path.join(evaluated[0], "lm_eval")


def test_results_carry_what_they_depend_on(evaluated):
    config = json.loads(evaluated[1].read_text())["config"]
    about = config["lit_spectral"]
    assert about["method"]["name"] == "LoRA"
    assert about["step"] == 8
    assert [config[f"{name}_seed"] for name in ("random", "numpy", "torch", "fewshot")] == [7] * 4
    assert about["versions"]["torch"] == torch.__version__
    assert "git" in about


def test_results_go_to_tensorboard(evaluated):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(evaluated[1].parent)).Reload()
    (point,) = events.Scalars("lm_eval/tiny_choice/acc")
    assert point.step == 8
    assert point.value == pytest.approx(json.loads(evaluated[1].read_text())["results"]["tiny_choice"]["acc,none"])


def test_git_state_is_that_of_the_current_folder(tmp_path, monkeypatch):
    from lit_spectral.evaluation.provenance import provenance

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git"] is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for args in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *args], check=True)
    assert provenance()["git"]["dirty"] is False
    (tmp_path / "new").touch()
    assert provenance()["git"]["dirty"] is True


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
        (4 * (i + 1), pytest.approx(r["results"]["tiny_choice"]["acc,none"])) for i, r in enumerate(records)
    ]


def test_the_callback_evaluates_at_the_end_alone(train, data):
    trainer = train(LMEvalCallback(["tiny_choice"], include_path=str(data)))
    assert [step for step, _ in scalars(trainer)["lm_eval/tiny_choice/acc"]] == [8]


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


def test_one_of_two_processes_evaluates_and_both_end_alike(data, decoder_folder, tmp_path):
    script = (
        "import sys, torch, lightning.pytorch as pl\n"
        "from lit_spectral.callbacks import LMEvalCallback\n"
        "from lit_spectral.datamodules import PromptedText\n"
        "from lit_spectral.adapters import trained_state\n"
        "from lit_spectral.methods import LoRA\n"
        "from lit_spectral.tasks import CausalLM\n"
        "data, backbone = sys.argv[1:]\n"
        "pl.seed_everything(0)\n"
        "task = CausalLM(backbone, LoRA(rank=2, dropout=0.3))\n"
        "trainer = pl.Trainer(max_epochs=2, accelerator='cpu', strategy='ddp', devices=2, default_root_dir='.',\n"
        "    enable_progress_bar=False, callbacks=[LMEvalCallback(['tiny_choice'], 1, data, limit=4)])\n"
        "rows = PromptedText(data, '{question} ', '{reply}', validation_rows=8, batch_size=4, max_length=32)\n"
        "trainer.fit(task, rows)\n"
        "torch.save(trained_state(task.model), f'rank{trainer.global_rank}.pt')\n"
    )
    (tmp_path / "train.py").write_text(script)
    subprocess.run(
        [sys.executable, "train.py", str(data), decoder_folder()],
        cwd=tmp_path, check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    (records,) = tmp_path.glob("**/lm_eval.jsonl")
    assert len(records.read_text().splitlines()) == 2
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def commonsense(tmp_path):
    """A folder with BoolQ in LLM-Adapters' form."""
    rows = [
        {"instruction": f"{words(4, i)}\n\nAnswer format: true/false", "input": "", "answer": ["false", "true"][i % 2]}
        for i in range(6)
    ]
    folder = tmp_path / "commonsense"
    (folder / "boolq").mkdir(parents=True)
    (folder / "boolq" / "test.json").write_text(json.dumps(rows))
    return folder


def test_commonsense_ranks_the_sentence_of_every_answer(commonsense):
    (task,) = Tasks(["commonsense_ranked_boolq"], metadata={"commonsense": str(commonsense)}).loaded
    doc = task.test_docs()[1]
    assert task.doc_to_text(doc).endswith("Answer format: true/false\n")
    assert task.doc_to_choice(doc) == ["the correct answer is true", "the correct answer is false"]
    assert task.doc_to_target(doc) == 0


@pytest.mark.parametrize(
    ("answer", "score"), [("the correct answer is false", 1.0), ("false, not true", 1.0), ("true", 0.0), ("no", 0.0)]
)
def test_commonsense_scores_the_first_answer_that_is_of_the_format(commonsense, answer, score):
    from lm_eval.api.model import LM

    class Says(LM):
        generate_until = lambda self, requests: [answer] * len(requests)  # noqa: E731
        loglikelihood = loglikelihood_rolling = None

    tasks = Tasks(["commonsense_boolq"], metadata={"commonsense": str(commonsense)})
    found = figures(evaluate(Says(), tasks, limit=1, bootstrap_iters=0))
    assert found == {"commonsense_boolq/exact_match_first": score}


def test_commonsense_takes_the_prompt_of_training(commonsense):
    metadata = {"commonsense": str(commonsense), "prompt": "### {instruction}{input}\n###"}
    (task,) = Tasks(["commonsense_boolq"], metadata=metadata).loaded
    assert task.doc_to_text(task.test_docs()[0]) == f"### {words(4, 0)}\n\nAnswer format: true/false\n###"


def test_scienceqa_leaves_out_questions_with_pictures(tmp_path):
    row = {"question": "Which?", "choices": ["this", "that"], "answer": 1, "hint": "Not this.", "image": None}
    write(tmp_path / "test.jsonl", [row | {"image": "1.png"}, row, row | {"hint": ""}])
    (task,) = Tasks(["scienceqa"], metadata={"scienceqa": str(tmp_path)}).loaded
    first, second = task.test_docs()
    assert task.doc_to_text(first) == (
        "Question: Which?\nContext: Not this.\nOptions: (A) this (B) that\nAnswer: The answer is"
    )
    assert "Context" not in task.doc_to_text(second)
    assert task.doc_to_choice(first) == ["A", "B"]
    assert task.doc_to_target(first) == 1


def test_our_tasks_are_those_that_the_table_says_are_ours(data):
    from lm_eval.tasks import TaskManager

    ours = TaskManager(include_path=str(OURS), include_defaults=False).all_tasks
    for benchmark in BENCHMARKS.values():
        assert all((task in ours) == benchmark.ours for task in benchmark.tasks)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "tiny_choice"], "give --checkpoint FILE, or --backbone FOLDER"),
        (["--tasks", "tiny_choice", "--checkpoint", "nowhere.ckpt"], "there is no file nowhere.ckpt"),
        (["--tasks", "tiny_choice", "--checkpoint", "foreign.ckpt"], "was not written by lit-spectral"),
        (["--tasks", "tiny_choice", "--checkpoint", "text.ckpt"], "can't be read as a checkpoint"),
        (["--backbone", "DECODER"], "tasks: none given; this package's benchmarks are commonsense"),
        (["--tasks", "commonsense_boolq"], "give it as --metadata commonsense=FOLDER"),
        (["--tasks", "commonsense_boolq", "--metadata", "commonsense=nowhere"], "there is no folder nowhere/boolq"),
        (["--tasks", "tiny_gone", "--backbone", "DECODER"], "the data of tiny_gone can't be had"),
        (["--tasks", "tiny_choice", "--include_path", "nowhere"], "include_path: there is no folder nowhere"),
        (["--tasks", "tiny_choice", "--no_such_flag"], "unrecognized arguments: --no_such_flag"),
        (["--tasks", "tiny_choice", "--model", "hf"], "--model is for lm_eval alone"),
        (["--tasks", "tiny_choice", "--backbone", "DECODER", "--device", "cuda:99"], "device: cuda:99 can't be used"),
        (["--tasks", "tiny_choice", "--backbone", "DECODER", "--model_args", "dtype=x"], "there is no dtype"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    data, decoder_folder, tmp_path, monkeypatch, capsys, flags, message
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}}, "foreign.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    gone = yaml.safe_load((data / "tiny_choice.yaml").read_text())
    gone |= {"task": "tiny_gone", "dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}
    for file in data.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "tiny_gone.yaml").write_text(yaml.safe_dump(gone))
    flags = [decoder_folder() if flag == "DECODER" else flag for flag in flags]
    place = [] if "--include_path" in flags else ["--include_path", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *flags, *place])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert message in lines[0]


def test_an_unknown_task_is_told_what_is_near_it(data, monkeypatch):
    # Of our own tasks alone: reading the harness's list takes half a minute.
    from lm_eval import tasks

    manager = tasks.TaskManager
    monkeypatch.setattr(tasks, "TaskManager", lambda include_defaults=True, **kw: manager(include_defaults=False, **kw))
    with pytest.raises(InputError, match="tasks: tiny_choise unknown; near it are tiny_choice"):
        Tasks(["tiny_choise"], str(data))


def test_an_encoders_checkpoint_is_refused(backbone_folder, mrpc_folder, tmp_path):
    from lit_spectral.datamodules import GLUE

    from lit_spectral.evaluation.model import CheckpointLM

    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.fit(SequenceClassification(backbone_folder("bert")), GLUE("mrpc", mrpc_folder, batch_size=8))
    trainer.save_checkpoint(tmp_path / "encoder.ckpt")
    with pytest.raises(InputError, match="is of the task SequenceClassification"):
        CheckpointLM(str(tmp_path / "encoder.ckpt"))


def test_the_harness_finds_the_model_by_its_name(decoder_folder):
    from lm_eval.api.registry import get_model

    import lit_spectral.evaluation.model  # noqa: F401

    model = get_model("lit-spectral").create_from_arg_string(f"backbone={decoder_folder()},device=cpu")
    assert model.model.config.model_type == "llama"


def test_the_command_line_does_not_import_the_harness():
    script = "import sys, lit_spectral.cli; assert not [name for name in sys.modules if name.startswith('lm_eval')]"
    subprocess.run([sys.executable, "-c", script], check=True)
