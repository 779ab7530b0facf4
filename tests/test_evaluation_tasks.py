"""Tasks of our own for the harness, and what the verb refuses."""

import json
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
import yaml
from harness_tasks import KINDS, checkpoint, data, quick, train, words, write  # noqa: F401 (fixtures)
from lit_spectral.datamodules.prompts import layout
from lit_spectral.datamodules.science_qa import question

from lit_spectral import cli
from lit_spectral.errors import InputError
from lit_spectral.evaluation import BENCHMARKS
from lit_spectral.evaluation.harness import OURS, Tasks, evaluate, figures
from lit_spectral.tasks import SequenceClassification


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


def test_a_prompt_is_a_template_by_its_name(commonsense):
    metadata = {"commonsense": str(commonsense), "prompt": "llm-adapters"}
    (task,) = Tasks(["commonsense_boolq"], metadata=metadata).loaded
    doc = task.test_docs()[0]
    assert (
        task.doc_to_text(doc) == layout("llm-adapters", None)(f"{words(4, 0)}\n\nAnswer format: true/false", "", "")[0]
    )


def test_scienceqa_leaves_out_questions_with_pictures(tmp_path):
    row = {"question": "Which?", "choices": ["this", "that"], "answer": 1, "hint": "Not this.", "image": None}
    write(tmp_path / "test.jsonl", [row | {"image": "1.png"}, row, row | {"hint": ""}])
    metadata = {"scienceqa": str(tmp_path), "prompt": "### {instruction}\n###"}
    (task,) = Tasks(["scienceqa"], metadata=metadata).loaded
    first, second = task.test_docs()
    assert task.doc_to_text(first) == f"### {question(row)}\n###"
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
        (["--tasks", "tiny_choice", "--no_such_flag"], "there is no --no_such_flag"),
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


@pytest.mark.slow
def test_the_command_line_does_not_import_the_harness():
    script = (
        "import sys, lit_spectral.lightning_cli\nassert not any(name.startswith('lm_eval') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
