"""SQuAD in windows: what they hold, and rows that can't be used."""

import json

import pytest
import torch
from squad_rows import SHORT, folder, questions, read, write  # noqa: F401 (fixtures)

from lit_spectral.errors import InputError


def test_windows_hold_the_question_and_cover_the_context(read):
    data = read()
    rows = list(questions(15, 1))
    seen = {}
    for window, number in zip(data.splits["val"], data.question_of("val").tolist(), strict=True):
        question = data.tokenizer(rows[number]["question"])["input_ids"]
        assert window["input_ids"][: len(question)] == question
        assert len(window["input_ids"]) <= 40
        first, last = window["context"]
        assert (first, last) == (len(question), len(window["input_ids"]) - 2)
        seen.setdefault(number, []).append(window["input_ids"][first : last + 1])
    assert len(data.splits["val"]) > 20
    for number, parts in seen.items():
        whole = list(parts[0])
        for part in parts[1:]:
            assert whole[-6:] == part[:6]  # the stride
            whole += part[6:]
        assert whole == data.tokenizer(rows[number]["context"], add_special_tokens=False)["input_ids"]


def test_labels_are_the_first_answer_where_all_of_it_is_in_the_window_else_the_first_token(read):
    data, rows = read(), list(questions(15, 1))
    labelled = {}
    for index, window in enumerate(data.splits["val"]):
        number = int(data.question_of("val")[index])
        span = window["start_positions"], window["end_positions"]
        answer = (rows[number]["answers"]["text"] or [None])[0]
        if span != (0, 0):
            (text,) = data.texts("val", torch.tensor([index]), *(torch.tensor([place]) for place in span))
            assert text == answer
        labelled[number] = labelled.get(number, False) or span != (0, 0)
    assert labelled == {number: bool(row["answers"]["text"]) for number, row in enumerate(rows)}


def test_training_windows_have_the_labels_of_evaluation_windows(folder, read):
    write(folder, "train", questions(15, 1))
    data = read()
    for name in ("input_ids", "start_positions", "end_positions"):
        assert data.splits["train"][name][:] == data.splits["val"][name][:]


def test_texts_are_cut_from_the_context_as_it_is_written(folder, read):
    row = {
        "id": "x",
        "context": "On the\u2003MAT,  über sat",
        "question": "dog",
        "answers": {"text": [], "answer_start": []},
    }
    write(folder, "validation", [row])
    data = read("validate")
    first, last = data.splits["val"][0]["context"]
    assert data.texts("val", torch.tensor([0]), torch.tensor([first]), torch.tensor([last])) == [row["context"]]


def test_batches_are_padded_on_the_right(read):
    data = read()
    data.tokenizer.padding_side = "left"
    batches = list(data.train_dataloader())
    assert set(batches[0]) == {*data.tokenizer("the"), "start_positions", "end_positions"}
    assert all((batch["attention_mask"].diff(dim=1) <= 0).all() for batch in batches)
    assert any((batch["attention_mask"] == 0).any() for batch in batches)


def test_evaluation_batches_name_their_windows(read):
    data = read()
    batches = list(data.val_dataloader()[0])
    assert sorted(torch.cat([batch["window"] for batch in batches]).tolist()) == list(range(len(data.splits["val"])))
    assert all(batch["context"].shape == (len(batch["window"]), 2) for batch in batches)


def test_a_long_question_is_cut_and_counted(read, caplog):
    caplog.set_level("INFO", "lit_spectral")
    data = read(max_query_length=3)
    lengths = [len(data.tokenizer(row["question"])["input_ids"]) - 2 for row in questions(15, 1)]
    count = sum(length > 3 for length in lengths)
    assert 0 < count < 15
    assert f"validation.jsonl: {count} of 15 questions are cut to 3 tokens" in caplog.text
    assert max(window["context"][0] for window in data.splits["val"]) == 3 + 2


GOOD = {"id": "g", "context": "the cat sat", "question": "who", "answers": {"text": ["cat"], "answer_start": [4]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": ["cat"], "answer_start": [3]}}, "line 2: the answer 'cat' is not at character 3"),
        ({"answers": {"text": ["dog"], "answer_start": [4]}}, "the answer 'dog' .* --data.skip_misplaced true"),
        ({"answers": {"text": ["cat"], "answer_start": [-7]}}, "is not at character -7"),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "the answer ' ' is not"),
        ({"answers": {"text": ["cat", "sat"], "answer_start": [4]}}, r"2 answers \(text\) have 1 places"),
        ({"answers": {"text": [None], "answer_start": [4]}}, "the answer None is not"),
        ({"answers": None}, r"line 2: answers is .*not the lists text and answer_start; give both"),
        (
            {"answers": {"text": "the cat", "answer_start": [4]}},
            "answers is .*not the lists text and answer_start; give",
        ),
        ({"answers": {"text": ["cat"]}}, "answers is .*not the lists text and answer_start; give"),
        ({"answers": {"text": ["cat"], "answer_start": ["4" * 5000]}}, "is not at character 4+… of its context; mend"),
        ({"context": " "}, "line 2: context is empty; mend the row"),
        ({"question": None}, "line 2: question is None, not text; mend the row"),
    ],
)
def test_a_row_that_can_not_be_used_is_named(folder, read, change, message):
    write(folder, "train", [GOOD, GOOD | change])
    with pytest.raises(InputError, match=rf"{folder}/train.jsonl, line 2: ") as raised:
        read()
    assert raised.match(message)


@pytest.mark.parametrize("missing", ["id", "context", "question", "answers"])
def test_a_missing_column_is_named(folder, read, missing):
    write(folder, "train", [{key: value for key, value in GOOD.items() if key != missing}])
    with pytest.raises(InputError, match=rf"train.jsonl: no column {missing}; its columns are"):
        read()


def test_a_question_without_answer_is_refused_in_v1(folder, read):
    with pytest.raises(InputError, match=r"train.jsonl, line 1: it has no answer; give --data.version_2 true"):
        read(version_2=False)


def test_ids_that_repeat_are_refused_where_predictions_need_them(folder, read):
    write(folder, "validation", [GOOD, GOOD])
    with pytest.raises(InputError, match=r"validation\.jsonl, line 2: id 'g' is that of an earlier question"):
        read()


def test_a_truncated_file_names_the_line(folder, read):
    (folder / "train.jsonl").write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD)[:40])
    with pytest.raises(InputError, match=r"train.jsonl, line 3 can't be read"):
        read()


def test_misplaced_answers_are_left_out_and_counted_on_request(folder, read, caplog):
    caplog.set_level("INFO", "lit_spectral")
    write(folder, "train", [GOOD, GOOD | {"answers": {"text": ["cat"], "answer_start": [3]}}, GOOD])
    data = read(skip_misplaced=True)
    assert len(data.splits["train"]) == 2
    assert "train.jsonl: 1 of 3 questions with an answer that is not at its place" in caplog.text


def test_nothing_left_is_refused(folder, read):
    write(folder, "train", [GOOD | {"answers": {"text": ["cat"], "answer_start": [3]}}])
    with pytest.raises(InputError, match="no row has its answers at their places"):
        read(skip_misplaced=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 25}, "a window of 40 tokens has 25 left beside a question of 12, and needs more than the stride"),
        ({"stride": -1}, "stride must be at least 0"),
        ({"max_query_length": 0}, "max_query_length must be at least 1"),
    ],
)
def test_windows_that_can_not_be_cut_are_refused(read, options, message):
    with pytest.raises(InputError, match=message):
        read(**options)


def test_windows_are_cached_by_content_and_settings(folder, read):
    def files(**options):
        data = read(**options)
        return {name: sorted(file["filename"] for file in rows.cache_files) for name, rows in data.splits.items()}

    first = files()
    made = {path.name: path.stat().st_mtime_ns for path in folder.parent.glob("**/cache-*.arrow")}
    assert files() == first
    assert {path.name: path.stat().st_mtime_ns for path in folder.parent.glob("**/cache-*.arrow")} == made
    assert files(stride=5)["train"] != first["train"]
    write(folder, "train", questions(24, 9))
    changed = files()
    assert changed["train"] != first["train"]
    assert changed["val"] == first["val"]
