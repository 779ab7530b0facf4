"""ConvAI2: its three forms give the same replies, conversations are held out whole, and scores go by their names."""

import json
import logging

import pytest
from lit_spectral.datamodules import ConvAI2

from lit_spectral.errors import InputError

PERSONA = ["i have a cat .", "i flew ."]
TURNS = ["hello", "hi there you cat", "you ran ?", "then i flew"]  # theirs, ours, theirs, ours


def conversation(number):
    turns = [f"{turn} {number}" for turn in TURNS]
    utterances = [{"history": turns[: 2 * k + 1], "candidates": ["no", turns[2 * k + 1]]} for k in range(2)]
    return {"personality": PERSONA, "utterances": utterances}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def nested(tmp_path):
    folder = tmp_path / "nested"
    folder.mkdir()
    (folder / "train.jsonl").write_text(lines(conversation(number) for number in range(8)))
    (folder / "validation.jsonl").write_text(lines(conversation(number) for number in range(8, 11)))
    return folder


def flat(folder):
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        turns = [{"personality": row["personality"]} | turn for row in rows for turn in row["utterances"]]
        (folder / f"{split}.jsonl").write_text(lines(turns))
    return folder


def one_file(folder):
    parts = {"train": range(8), "valid": range(8, 11)}
    content = {name: [conversation(number) for number in numbers] for name, numbers in parts.items()}
    (folder / "personachat_self_original.json").write_text(json.dumps(content))
    return folder / "personachat_self_original.json"


def parlai(folder):
    for split, numbers in (("train", range(8)), ("valid", range(8, 11))):
        text = ""
        for number in numbers:
            said = [f"your persona: {line}" for line in PERSONA]
            said += [f"{TURNS[k]} {number}\t{TURNS[k + 1]} {number}\t\tno|yes" for k in (0, 2)]
            text += "".join(f"{index} {line}\n" for index, line in enumerate(said, 1))
        (folder / f"{split}_self_original.txt").write_text(text)
    return folder


@pytest.mark.parametrize("form", [flat, one_file, parlai])
def test_every_form_gives_the_same_replies(nested, form):
    expected = ConvAI2(str(nested)).test_rows("convai2").to_list()
    assert len(expected) == 6
    assert ConvAI2(str(form(nested))).test_rows("convai2").to_list() == expected


def test_a_reply_is_given_persona_and_history(nested):
    row = ConvAI2(str(nested)).test_rows("convai2")[1]
    assert row["input"] == (
        "Who you are:\n- i have a cat .\n- i flew .\n\n"
        "Conversation:\nThem: hello 8\nYou: hi there you cat 8\nThem: you ran ? 8\nYou:"
    )
    assert row["answer"] == "then i flew 8"


def test_whole_conversations_are_held_out(nested, caplog):
    data = ConvAI2(str(nested), validation_rows=3)
    with caplog.at_level(logging.INFO):
        numbers = [{text.split()[-1] for text in data.rows(split)["output"]} for split in ("train", "validation")]
    assert caplog.text.count("4 of 16 training replies are held out to validate on") == 1
    assert [len(found) for found in numbers] == [6, 2]
    assert not numbers[0] & numbers[1]


def test_whole_conversations_are_held_out_of_rows_of_replies(nested):
    data = ConvAI2(str(flat(nested)), validation_rows=3)
    numbers = [{text.split()[-1] for text in data.rows(split)["output"]} for split in ("train", "validation")]
    assert [len(found) for found in numbers] == [6, 2]
    assert not numbers[0] & numbers[1]


def test_nothing_left_to_train_on_is_an_error(nested):
    with pytest.raises(InputError, match="16 replies to train on, of which 16 can't be held out"):
        ConvAI2(str(nested), validation_rows=16).rows("train")


@pytest.mark.parametrize(("line", "number"), [("3 no tab here", 3), ("x one\ttwo", 3), ("3 one\t ", 3)])
def test_a_broken_line_of_text_is_named(nested, line, number):
    file = parlai(nested) / "valid_self_original.txt"
    kept = file.read_text().splitlines()[:2]
    file.write_text("\n".join([*kept, line]))
    with pytest.raises(InputError, match=rf"valid_self_original\.txt, line {number}:"):
        ConvAI2(str(nested)).test_rows("convai2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"utterances": None}, "line 2: utterances is None"),
        ({"utterances": [{"history": ["a"], "candidates": []}]}, "line 2: the last of its candidates"),
        ({"utterances": [{"history": ["a"], "candidates": ["b", " "]}]}, "line 2: the last of its candidates"),
        ({"personality": None}, "line 2: personality is None, not a list of texts"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(nested, change, message):
    (nested / "validation.jsonl").write_text(lines([conversation(0), conversation(1) | change]))
    with pytest.raises(InputError, match=message):
        ConvAI2(str(nested)).test_rows("convai2")


def test_a_turn_may_hold_other_line_ends(nested):
    file = parlai(nested) / "valid_self_original.txt"
    file.write_text(file.read_text().replace("hello 8", "hel\u2028lo 8"), encoding="utf-8")
    assert "Them: hel\u2028lo 8\n" in ConvAI2(str(nested)).test_rows("convai2")[0]["input"]


def test_no_replies_is_an_error(nested):
    (nested / "validation.jsonl").write_text(lines([conversation(0) | {"utterances": []}]))
    with pytest.raises(InputError, match="holds no replies"):
        ConvAI2(str(nested)).test_rows("convai2")


def test_replies_are_scored_by_what_is_given(command, nested, backbone_folder, caplog, monkeypatch):
    golds = ConvAI2(str(nested)).test_rows("convai2")["answer"]
    monkeypatch.setattr("nltk.data.path", [])
    monkeypatch.setattr(
        "lit_spectral.tasks.causal_lm.continue_batch",
        lambda model, tokenizer, batch, *rest: [f" {golds[row]}\n" for row in batch["row"]],
    )
    flags = ["--data=ConvAI2", f"--data.path={nested}", "--data.max_length=40", "--data.max_new_tokens=2"]
    with caplog.at_level(logging.WARNING):
        done = command(
            "test", *flags, f"--data.bert_score_model={backbone_folder('bert')}", "--data.bert_score_layer=1"
        )
    metrics = {name: float(value) for name, value in done.trainer.callback_metrics.items()}
    names = ("bleu", "rouge_l", "bert_precision", "bert_recall", "bert_f1")
    assert metrics == pytest.approx(dict.fromkeys([f"convai2/{name}" for name in names], 1), abs=1e-5)
    assert "without METEOR, which needs WordNet; give --data.nltk_data" in caplog.text


def test_it_is_trained_through_the_command_line(command, nested):
    flags = [f"--data.path={nested}", "--data.validation_rows=2", "--data.max_length=40"]
    done = command("fit", "--data=ConvAI2", *flags)
    assert "val/loss" in done.trainer.callback_metrics
