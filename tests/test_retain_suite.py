"""What is lost on tasks of lm-evaluation-harness."""

import json
from pathlib import Path

import pytest
from harness_tasks import checkpoint, data, quick, train  # noqa: F401 (fixtures)

from lit_spectral import cli
from lit_spectral.evaluation import command
from lit_spectral.retention.suite import Score, is_one_of, retain

TASKS = ["tiny_choice", "tiny_generation"]


def test_scores_are_those_of_evaluate_before_and_after(checkpoint, data, decoder_folder, tmp_path, capsys):
    path = checkpoint()
    cli.main(["retain", "--checkpoint", path, "--tasks", *TASKS, "--include_path", str(data), "--leave_out", TASKS[1]])
    report = json.loads((Path(path).parents[1] / "retention.json").read_text())
    flags = ["--tasks", ",".join(TASKS), "--include_path", str(data), "--output_path", str(tmp_path / "r.json")]
    for side, place in (("base", ["--backbone", decoder_folder()]), ("adapted", ["--checkpoint", path])):
        expected = json.loads(command.run([*place, *flags]).read_text())["results"]
        found = {score["task"]: score[side] for score in report["scores"]}
        assert found == {"tiny_choice": expected["tiny_choice"]["acc,none"],
                         "tiny_generation": expected["tiny_generation"]["exact_match,none"]}  # fmt: skip
    lost = {score["task"]: 100 * (score["base"] - score["adapted"]) for score in report["scores"]}
    assert report["retain"] == pytest.approx(lost["tiny_choice"])
    assert "left out" in capsys.readouterr().out


def test_retain_is_the_mean_in_points():
    assert retain([Score("a", "acc", 0.5, 0.4), Score("b", "acc", 0.5, 0.6), Score("c", "acc", 0.9, 0.6)]) == (
        pytest.approx(10)
    )


def test_a_score_of_which_less_is_better_is_refused(checkpoint, data, capsys):
    with pytest.raises(SystemExit):
        cli.main(["retain", "--checkpoint", checkpoint(), "--tasks", "tiny_text", "--include_path", str(data)])
    assert "tiny_text has no score from 0 to 1 of which more is better" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "names", "one_of_them"),
    [
        ("boolq", ["commonsense_zero_shot"], True),  # a benchmark of this package
        ("hendrycks_math", ["math"], True),
        ("mmlu_anatomy", ["mmlu_*"], True),
        ("gsm8k", ["math", "mmlu_*"], False),
    ],
)
def test_a_task_goes_by_all_the_names_that_tasks_takes(task, names, one_of_them):
    assert is_one_of(task, names) == one_of_them


def test_a_task_in_a_file_goes_by_its_own_name(tmp_path):
    (tmp_path / "file.yaml").write_text("output_type: x\ntask: tiny\n")
    assert is_one_of("tiny", [str(tmp_path / "file.yaml")])


@pytest.mark.parametrize(
    ("left_out", "message"), [("tiny_choice", "names every task"), ("tiny_chioce", "is none of --tasks tiny_choice")]
)
def test_what_is_left_out_is_checked_before_anything_is_loaded(left_out, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["retain", "--checkpoint", "none.ckpt", "--tasks", "tiny_choice", "--leave_out", left_out])
    assert message in capsys.readouterr().err
