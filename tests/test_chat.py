"""Conversations: which tokens of them are scored, and what is no conversation."""

import json

import datasets
import pytest
from lit_spectral.datamodules import ChatText
from test_prompts import chatty  # noqa: F401 (a fixture)

from lit_spectral.errors import LONGEST, InputError


def turn(role, content):
    return {"role": role, "content": content}


TALK = [turn("user", "the cat"), turn("assistant", "sat"), turn("user", "the bird"), turn("assistant", "flew over")]
PLAIN = "on the mat"


@pytest.fixture
def read(tmp_path, chatty):
    """What is read of conversations to train on, by a tokenizer with a chat template."""
    folder, save = chatty

    def make(*talks, change=lambda text: text, column="messages", **settings):
        save(change)
        rows = [{column: talk} for talk in (*talks, [turn("user", "a"), turn("assistant", PLAIN)])]
        (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "rows" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
        (tmp_path / "rows" / "validation.jsonl").write_text(json.dumps(rows[-1]) + "\n")
        data = ChatText(str(tmp_path / "rows"), tokenizer=str(folder), **settings)
        data.setup("fit")
        return data

    return make


def texts(data, row, scored):
    """The scored, or the given, parts of a row as texts."""
    parts, before = [], None
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if (label != -100) == scored:
            parts = parts if before == scored else [*parts, []]
            parts[-1].append(token)
        before = label != -100
    return [data.tokenizer.decode(part) for part in parts]


def test_every_turn_of_the_assistant_and_its_end_are_scored_and_nothing_else(read):
    data = read(TALK)
    (row,) = data.splits["train"]
    opening, ending = data.tokenizer.bos_token, data.tokenizer.eos_token
    assert texts(data, row, True) == [f"sat {ending}", f"flew over {ending}"]
    (before, between), unknown = texts(data, row, False), data.tokenizer.unk_token
    assert before == f"{opening} {unknown} {unknown} the cat {ending} {opening} {unknown} {unknown}"
    assert between == before.replace("cat", "bird")
    assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))


def test_a_row_is_the_whole_conversation_as_the_template_writes_it(read):
    data = read([turn("system", "the hill"), *TALK])
    whole = data.tokenizer.apply_chat_template([turn("system", "the hill"), *TALK], tokenize=False)
    assert data.splits["train"][0]["input_ids"] == data.tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_the_last_turn_alone_is_scored_by_option_and_what_follows_it_is_left_out(read):
    data = read([*TALK, turn("user", "the dog")], turns="last")
    assert texts(data, data.splits["train"][0], True) == [f"flew over {data.tokenizer.eos_token}"]
    assert "dog" not in data.tokenizer.decode(data.splits["train"][0]["input_ids"])


def test_what_is_too_long_loses_its_beginning(read):
    whole, cut = (read(TALK, max_length=length).splits["train"][0] for length in (512, 12))
    assert (cut["input_ids"][1:], cut["labels"][1:]) == (whole["input_ids"][-11:], whole["labels"][-11:])


def test_what_is_cut_begins_as_the_template_begins(read):
    data = read(TALK, max_length=12)
    (row,) = data.splits["train"]
    assert len(row["input_ids"]) == 12
    assert row["input_ids"][0] == data.tokenizer.bos_token_id


def test_a_greeting_that_nobody_asked_for_is_given(read):
    data = read([turn("assistant", "sat"), *TALK[2:]])
    (row,) = data.splits["train"]
    assert texts(data, row, True) == [f"flew over {data.tokenizer.eos_token}"]


def test_conversations_of_parquet_and_of_one_file_are_the_same(read, tmp_path):
    expected = read(TALK).splits["train"]["input_ids"][:]
    (tmp_path / "rows" / "train.jsonl").unlink()
    datasets.Dataset.from_list([{"messages": TALK}]).to_parquet(str(tmp_path / "rows" / "train.parquet"))
    data = ChatText(str(tmp_path / "rows"), tokenizer=str(tmp_path / "chatty"))
    data.setup("fit")
    assert data.splits["train"]["input_ids"] == expected
    alone = ChatText(str(tmp_path / "talks.jsonl"), tokenizer=str(tmp_path / "chatty"), validation_rows=1)
    alone.setup("fit")
    assert sorted(map(len, (alone.splits["train"], alone.splits["val"]))) == [1, 1]


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ("hello", "messages is 'hello', not a list of objects with role and content; mend"),
        (None, "messages is None, not a list"),
        (["hello"], "messages holds 'hello', not an object with a role and a content"),
        ([{"from": "human", "value": "x" * 5000}], "not an object with a role and a content, both texts; mend"),
        ([turn("user", ["a"])], "not an object with a role and a content, both texts; mend"),
        (
            [turn("assitant", "a")],
            "messages has the role 'assitant', which is none of system, developer, user, assistant",
        ),
        (
            [turn("user", "a"), turn("assistant", "") | {"tool_calls": [{"id": "1"}]}],
            "messages has tool_calls, which are",
        ),
        ([turn("user", "a")], "the answer is empty; leave the row out, or give --data.empty_answer skip"),
        ([turn("user", "a"), turn("assistant", " ")], "the answer is empty; leave the row out"),
    ],
)
def test_what_is_no_conversation_is_named_by_its_line(read, talk, message):
    with pytest.raises(InputError) as raised:
        read(TALK, talk)
    said = str(raised.value)
    assert "train.jsonl, line 2: " in said
    assert message in said
    assert len(said) <= LONGEST


def test_a_column_that_is_missing_is_named(read):
    with pytest.raises(InputError, match=r"train.jsonl: no column messages; its columns are talk"):
        read(TALK, column="talk")


def test_a_template_that_writes_earlier_turns_otherwise_takes_the_last_alone(read):
    def change(template):
        again = "{{ m['role'] }} {% if m['role'] == 'assistant' and not loop.last %}again{% endif %} :"
        return template.replace("{{ m['role'] }} :", again).replace("assistant : {% endif", "assistant  : {% endif")

    with pytest.raises(InputError, match=r"writes a turn otherwise once others follow.*; give --data.turns last"):
        read(TALK, change=change)
    data = read(TALK, change=change, turns="last")
    assert texts(data, data.splits["train"][0], True) == [f"flew over {data.tokenizer.eos_token}"]


def test_a_tokenizer_without_a_template_is_refused(tmp_path, decoder_folder):
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    with pytest.raises(InputError, match="the tokenizer has no chat template; give a backbone that has learned to"):
        ChatText(str(tmp_path), tokenizer=decoder_folder()).setup("fit")
