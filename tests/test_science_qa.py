"""ScienceQA: what is asked and left out, and the rule that finds the answer."""

import json
import logging

import pytest
from lit_spectral.datamodules import ScienceQA
from lit_spectral.datamodules.science_qa import question

from lit_spectral.errors import InputError
from lit_spectral.scoring import score_letter

ROW = {"question": "Which flew?", "choices": ["the cat", "the bird"], "answer": 1, "hint": "One ran.", "image": None}


@pytest.fixture
def science(tmp_path):
    def write(**splits):
        for split, rows in ({name: [ROW] * 4 for name in ("train", "validation", "test")} | splits).items():
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path)

    return write


def test_a_question_holds_context_and_options_by_letter():
    assert question(ROW) == (
        "Question: Which flew?\nContext: One ran.\nOptions: (A) the cat (B) the bird\n"
        "Answer with the letter of the right option."
    )
    assert "Context" not in question(ROW | {"hint": None})


def test_questions_with_pictures_are_left_out_and_counted(science, caplog):
    data = ScienceQA(science(test=[ROW | {"image": "1.png"}, ROW, ROW | {"image": "2.png"}, ROW | {"image": ""}]))
    with caplog.at_level(logging.WARNING):
        rows = data.test_rows("scienceqa")
    assert rows["output"] == ["B", "B"]
    assert "2 of 4 questions left out, of a picture" in caplog.text


def test_a_struct_of_nulls_is_no_picture(tmp_path):
    import datasets

    images = [{"bytes": None, "path": None}, {"bytes": b"x", "path": None}, None]
    rows = {name: [value] * 3 for name, value in ROW.items() if name != "image"} | {"image": images}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "test.parquet")
    assert len(ScienceQA(str(tmp_path)).test_rows("scienceqa")) == 2


def test_only_pictures_is_an_error(science):
    with pytest.raises(InputError, match="every question has a picture"):
        ScienceQA(science(test=[ROW | {"image": "1.png"}])).test_rows("scienceqa")


@pytest.mark.parametrize(
    "change",
    [
        {"answer": 2}, {"answer": -1}, {"answer": "B"}, {"answer": True}, {"choices": list("abcdef")},
        {"choices": ["a"], "answer": 0}, {"choices": ["a", None]}, {"choices": None}, {"question": None},
        {"question": ""},
    ],
)  # fmt: skip
def test_what_is_no_question_with_a_right_option_is_named(science, change):
    with pytest.raises(InputError, match=r"train.jsonl, line 2: .*; mend the row or leave it out"):
        ScienceQA(science(train=[ROW, ROW | change])).rows("train")


def test_letters():
    assert score_letter("The answer is (B).", "B")
    assert score_letter("B", "B")
    assert not score_letter("Because of C", "B")
    assert not score_letter("BB", "B")
    assert not score_letter("", "B")


def test_it_is_trained_and_tested_through_the_command_line(command, science):
    flags = ["--data=ScienceQA", f"--data.path={science()}", "--data.batch_size=2", "--data.max_length=40"]
    command("fit", *flags)
    done = command("test", *flags)
    assert set(done.trainer.callback_metrics) == {"scienceqa/accuracy"}
