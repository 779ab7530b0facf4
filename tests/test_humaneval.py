"""HumanEval: problems read, completions cut, run and scored, as a function and as a verb."""

import json

import pytest

from lit_spectral import cli
from lit_spectral.errors import InputError
from lit_spectral.scoring import humaneval
from lit_spectral.scoring.code_execution import available

REASON = available()
isolated = pytest.mark.skipif(REASON is not None, reason=f"no isolation here: {REASON}")


ROWS = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}(a, b):\n    """The {word} of both."""\n',
        "entry_point": name,
        "canonical_solution": f"    return a {sign} b\n",
        "test": f"def check(candidate):\n    assert candidate(3, 2) == {value}\n",
    }
    for number, (name, word, sign, value) in enumerate([("add", "sum", "+", 5), ("times", "product", "*", 6)])
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.fixture
def problems(folder):
    return humaneval.read_problems(str(folder))


def test_problems_are_read_in_order(problems):
    assert list(problems) == ["HumanEval/0", "HumanEval/1"]
    assert problems["HumanEval/1"].entry_point == "times"


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"task_id": "HumanEval/0", "prompt": ""}) + "\n")
    with pytest.raises(InputError, match="no column entry_point"):
        humaneval.read_problems(str(tmp_path))


@pytest.mark.parametrize("after", ["def other():", "class A:", "# a remark", "if __name__", "print(1)"])
def test_a_completion_is_cut_where_the_function_ends(after):
    body = "    if a:\n        print(a)\n    # inside\n    return b"
    assert humaneval.cut(f"{body}\n{after}\nreturn") == body


@isolated
def test_canonical_solutions_pass(problems):
    solutions = {task: [problem.canonical_solution] for task, problem in problems.items()}
    assert humaneval.score(problems, solutions, allow_code_execution=True).pass_at_k == {1: 1.0}


@isolated
def test_samples_are_counted_by_problem(problems):
    right, wrong = "    return a + b\n", "    return a - b\n"
    samples = {"HumanEval/0": [right, wrong, wrong, wrong], "HumanEval/1": [wrong] * 4}
    scores = humaneval.score(problems, samples, k=[1, 2], allow_code_execution=True)
    assert scores.pass_at_k == pytest.approx({1: 0.25 / 2, 2: 0.5 / 2})
    assert [outcome.status for outcome in scores.outcomes["HumanEval/0"]] == ["passed", "failed", "failed", "failed"]


def both(count=1):
    return {row["task_id"]: [row["canonical_solution"]] * count for row in ROWS}


@pytest.mark.parametrize(
    ("completions", "k", "message"),
    [
        (both(), None, "runs 2 programs .* allow it with --allow_code_execution"),
        (both() | {"Other/7": [""]}, None, "no problem Other/7"),
        ({"HumanEval/0": [""]}, None, "no completion of 1 of 2 problems, such as HumanEval/1"),
        (both() | {"HumanEval/1": []}, None, "no completion of 1 of 2"),
        (both(3), [1, 10], "a problem has 3 completions"),
    ],
)
def test_what_cant_be_scored_is_told_before_anything_runs(problems, completions, k, message, monkeypatch):
    monkeypatch.setattr(humaneval, "run", lambda *_: pytest.fail("a program was run"))
    with pytest.raises(InputError, match=message):
        humaneval.score(problems, completions, k)


def write_samples(folder, rows):
    file = folder / "samples.jsonl"
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text(text, encoding="utf-8")
    return str(file)


@isolated
def test_the_verb_scores_a_file_and_writes_what_became_of_each(folder, capsys):
    rows = [
        {"task_id": "HumanEval/1", "completion": "    return a * b  # \u2028", "temperature": 0.8},
        {"task_id": "HumanEval/0", "completion": "    return a - b"},
    ]
    samples = write_samples(folder, [json.dumps(rows[0], ensure_ascii=False), rows[1]])
    cli.main(["humaneval", samples, "--path", str(folder), "--allow_code_execution"])
    assert capsys.readouterr().out == "pass@1: 0.5000\n"
    results = [json.loads(line) for line in (folder / "samples_results.jsonl").read_text().splitlines()]
    assert [(row["task_id"], row["passed"], row["status"]) for row in results] == [
        ("HumanEval/1", True, "passed"),
        ("HumanEval/0", False, "failed"),
    ]


def test_the_verb_runs_nothing_without_the_flag(folder, capsys):
    samples = write_samples(folder, [{"task_id": task, "completion": texts[0]} for task, texts in both().items()])
    with pytest.raises(SystemExit) as ended:
        cli.main(["humaneval", samples, "--path", str(folder)])
    assert ended.value.code == 2
    assert "--allow_code_execution" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no samples"),
        (['{"task_id": '], "line 1 is not JSON"),
        ([{"task_id": "HumanEval/0"}], "line 1 is not"),
        ([{"task_id": "HumanEval/0", "completion": None}], "line 1 is not"),
        (["[]"], "line 1 is not"),
    ],
)
def test_a_line_that_is_no_sample_is_named(folder, rows, message):
    with pytest.raises(InputError, match=message):
        humaneval.evaluate(write_samples(folder, rows), str(folder), allow_code_execution=True)


@pytest.mark.parametrize("name", ["nowhere.jsonl", "null\0byte"])
def test_a_missing_file_of_samples_is_named(folder, name):
    with pytest.raises(InputError, match=f"{name} can't be read"):
        humaneval.evaluate(str(folder / name), str(folder))


def test_results_that_cant_be_written_are_told_first(folder):
    samples = write_samples(folder, [{"task_id": "HumanEval/0", "completion": ""}])
    with pytest.raises(InputError, match="can't be written"):
        humaneval.evaluate(samples, str(folder), results="/proc/none/results.jsonl")
