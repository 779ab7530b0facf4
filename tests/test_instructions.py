"""Instructions: what is learned of each form, and what HumanEval and AlpacaEval are given and get."""

import json
import logging

import pytest
from lit_spectral.datamodules import Instructions
from lit_spectral.datamodules.instructions import _best

from lit_spectral.errors import InputError
from lit_spectral.scoring import code_execution


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def alpaca(tmp_path):
    rows = [{"instruction": "the cat", "input": "sat" if number % 2 else "", "output": "on"} for number in range(6)]
    write(tmp_path / "train.jsonl", rows)
    return str(tmp_path)


@pytest.fixture
def functions(tmp_path):
    folder = tmp_path / "humaneval"
    folder.mkdir()
    rows = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": f"def add_{number}(a):\n",
            "entry_point": f"add_{number}",
            "canonical_solution": f"    return a + {number}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {1 + number}\n",
        }
        for number in range(3)
    ]
    write(folder / "test.jsonl", rows)
    return str(folder)


@pytest.fixture
def asked(tmp_path):
    file = tmp_path / "alpaca_eval.json"
    file.write_text(json.dumps([{"instruction": f"the {who}", "dataset": "koala"} for who in ("cat", "dog", "bird")]))
    return str(file)


def test_an_input_may_be_missing(tmp_path):
    write(tmp_path / "train.jsonl", [{"instruction": "the cat", "output": "sat"}])
    assert Instructions(str(tmp_path)).rows("train")[0] == {"instruction": "the cat", "input": "", "output": "sat"}


def test_rows_without_an_answer_are_left_out(tmp_path, decoder_folder, caplog):
    rows = [{"instruction": "the cat", "output": text} for text in ("sat", "", "ran", None)]
    write(tmp_path / "train.jsonl", rows)
    data = Instructions(str(tmp_path), tokenizer=decoder_folder(), validation_rows=1)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert len(data.splits["train"]) == 1
    assert "2 of 4 rows left out" in caplog.text


def test_the_best_of_ultrafeedbacks_completions_is_learned(tmp_path):
    scores = {"a": 2.5, "b": 4.75, "c": 3}
    completions = [{"response": text, "fine-grained_score": score} for text, score in scores.items()]
    write(tmp_path / "train.jsonl", [{"instruction": "the cat", "completions": completions, "source": "x"}])
    assert Instructions(str(tmp_path)).rows("train")[0] == {"instruction": "the cat", "input": "", "output": "b"}


@pytest.mark.parametrize(
    ("completions", "expected"),
    [
        ([{"response": "a", "fine-grained_score": None}, {"response": "b", "fine-grained_score": 1.0}], "b"),
        ([{"response": None, "fine-grained_score": 5.0}, {"response": "b", "fine-grained_score": 1.0}], "b"),
        ([{"response": "", "fine-grained_score": 5.0}, {"response": "b", "fine-grained_score": 1.0}], "b"),
        ([{"response": "a", "fine-grained_score": float("nan")}, {"response": "b", "fine-grained_score": 1.0}], "b"),
        ([{"response": "a"}], ""),
        ([], ""),
        (None, ""),
    ],
)
def test_a_completion_counts_with_text_and_a_score(completions, expected):
    assert _best(completions) == expected


def test_missing_columns_are_named(tmp_path):
    write(tmp_path / "train.jsonl", [{"instruction": "the cat", "response": "sat"}])
    with pytest.raises(InputError, match="no column output"):
        Instructions(str(tmp_path)).rows("train")


def test_nothing_to_test_on_is_an_error(command, alpaca):
    with pytest.raises(InputError, match=r"nothing to test on; give --data\.humaneval"):
        command("test", "--data=Instructions", f"--data.path={alpaca}")


def test_samples_that_would_be_alike_are_refused(alpaca):
    with pytest.raises(InputError, match="3 completions of a problem would all be alike"):
        Instructions(alpaca, samples=3)


def test_a_function_is_given_without_the_template(alpaca, functions, decoder_folder):
    data = Instructions(alpaca, humaneval=functions, tokenizer=decoder_folder(), max_new_tokens=4)
    data.setup("test")
    assert data.splits["humaneval"]["prompt"][1] == "def add_1(a):"


def answer_with(monkeypatch, texts):
    """In place of what the model generates: from gold to text."""
    monkeypatch.setattr(
        "lit_spectral.tasks.causal_lm.continue_batch",
        lambda model, tokenizer, batch, *rest: [texts(gold) for gold in batch["gold"]],
    )


def read(trainer, name):
    with open(f"{trainer.log_dir}/generations/{name}", encoding="utf-8") as file:
        return [json.loads(line) for line in file] if name.endswith("jsonl") else json.load(file)


def test_samples_are_kept_and_not_run_without_leave(command, alpaca, functions, monkeypatch, caplog):
    answer_with(monkeypatch, lambda gold: f"    return {gold[-1]}\n")
    flags = [f"--data.path={alpaca}", f"--data.humaneval={functions}", "--data.max_new_tokens=4"]
    with caplog.at_level(logging.WARNING):
        done = command("test", "--data=Instructions", *flags)
    assert read(done.trainer, "humaneval_samples.jsonl")[2] == {
        "task_id": "HumanEval/2",
        "completion": "    return 2\n",
    }
    assert "completions were not run" in caplog.text
    assert not done.trainer.callback_metrics


@pytest.mark.skipif(code_execution.available() is not None, reason="programs can't be shut in here")
def test_functions_are_run_with_leave(command, alpaca, functions, monkeypatch):
    # Each problem's two draws are alike; the first problem's are right.
    answer_with(monkeypatch, lambda gold: "\n    return a\n")
    flags = [f"--data.path={alpaca}", f"--data.humaneval={functions}", "--data.max_new_tokens=4", "--data.samples=2"]
    flags += ["--data.generation={do_sample: true}", "--data.allow_code_execution=true"]
    done = command("test", "--data=Instructions", *flags)
    assert float(done.trainer.callback_metrics["humaneval/pass@1"]) == pytest.approx(1 / 3)
    assert [row["status"] for row in read(done.trainer, "humaneval.jsonl")][:3] == ["passed", "passed", "failed"]


def test_each_batch_of_draws_has_its_own_random_numbers(command, alpaca, functions):
    flags = [f"--data.path={alpaca}", f"--data.humaneval={functions}", "--data.max_new_tokens=8", "--data.samples=4"]
    flags += ["--data.generation={do_sample: true, top_k: 0}", "--data.batch_size=1", "--seed_everything=1"]
    done = command("test", "--data=Instructions", *flags)
    texts = [row["text"] for row in read(done.trainer, "humaneval.jsonl")]
    assert len(set(texts[:4])) == 4
    again = command("test", "--data=Instructions", *flags)
    assert [row["text"] for row in read(again.trainer, "humaneval.jsonl")] == texts


def test_predict_answers_every_set(command, alpaca, functions, asked):
    flags = [f"--data.path={alpaca}", f"--data.humaneval={functions}", f"--data.alpaca_eval={asked}"]
    done = command("predict", "--data=Instructions", *flags, "--data.max_new_tokens=2", "--data.max_length=40")
    assert [len(batch) for part in done.trainer.predict_loop.predictions for batch in part] == [3, 3]


def test_outputs_are_written_for_the_judge(command, alpaca, asked, monkeypatch):
    answer_with(monkeypatch, lambda gold: " sat on\n")
    flags = [f"--data.path={alpaca}", f"--data.alpaca_eval={asked}", "--data.max_new_tokens=4", "--data.limit=2"]
    done = command("test", "--data=Instructions", *flags, "--data.generator=ours", "--data.max_length=40")
    expected = {"output": "sat on", "generator": "ours", "dataset": "koala"}
    rows = [{"instruction": f"the {who}"} | expected for who in ("cat", "dog")]
    assert read(done.trainer, "alpaca_eval_outputs.json") == rows
    assert float(done.trainer.callback_metrics["alpaca_eval/mean_characters"]) == 6


def test_instructions_are_trained_and_answered_through_the_command_line(command, alpaca, functions, asked):
    flags = [f"--data.path={alpaca}", "--data.max_new_tokens=3", "--data.max_length=40", "--data.validation_rows=2"]
    command("fit", "--data=Instructions", *flags, "--data.packing=true")
    tests = [f"--data.humaneval={functions}", f"--data.alpaca_eval={asked}"]
    done = command("test", "--data=Instructions", *flags, *tests)
    assert len(read(done.trainer, "humaneval.jsonl")) == 3
    assert len(read(done.trainer, "alpaca_eval.jsonl")) == 3
