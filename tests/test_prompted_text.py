import shutil

import pytest
import torch
from conftest import WORDS
from lit_spectral.datamodules import PromptedText, TextWindows
from lit_spectral.datamodules.files import split_exists

from lit_spectral.errors import InputError


def write(folder, split, rows, suffix="jsonl"):
    import datasets

    rows = datasets.Dataset.from_list(rows)
    {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[suffix](str(folder / f"{split}.{suffix}"))


QUESTIONS = [{"q": f"the {who} {did}", "n": 1, "a": "on the mat"} for who in WORDS[1:4] for did in WORDS[4:11]]


@pytest.fixture
def prompted(tmp_path, decoder_folder):
    """PromptedText over 21 rows, or others, set up for training."""

    def make(rows=QUESTIONS, bos=True, prompt="{q} {n}\n", answer="{a}", validation=None, **options):
        write(tmp_path, "train", rows)
        if validation is not None:
            write(tmp_path, "validation", validation)
        options = {"validation_rows": 6, "tokenizer": decoder_folder("llama", bos)} | options
        data = PromptedText(str(tmp_path), prompt, answer, **options)
        data.setup("fit")
        return data

    return make


def texts(data, name):
    return [data.tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in data.splits[name]]


@pytest.mark.parametrize("bos", [True, False])
def test_a_row_is_prompt_answer_and_eos_of_which_the_answer_and_eos_are_scored(prompted, bos):
    data = prompted([QUESTIONS[0]] * 2, bos, validation_rows=1)
    tokenizer, row = data.tokenizer, data.splits["train"][0]
    opening = [tokenizer.bos_token_id] if bos else []
    given = opening + tokenizer("the cat sat 1\n", add_special_tokens=False)["input_ids"]
    said = [*tokenizer("on the mat", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert row["input_ids"] == given + said
    assert row["labels"] == [-100] * len(given) + said


def test_numbers_are_written_out_and_doubled_braces_are_braces(prompted, decoder_folder, tmp_path):
    import transformers

    folder = shutil.copytree(decoder_folder(), tmp_path / "decoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["{", "}", "7"])
    tokenizer.save_pretrained(folder)
    row = QUESTIONS[0] | {"n": 7}
    data = prompted([row] * 2, prompt="{{{n}}} ", validation_rows=1, tokenizer=str(folder))
    assert texts(data, "train")[0].replace(" ", "") == "{7}onthemat"


def test_a_long_prompt_loses_its_beginning_and_keeps_bos(prompted):
    data = prompted([{"q": "cat dog bird hill", "n": 1, "a": "mat"}] * 2, validation_rows=1, max_length=10)
    plain, row = {"add_special_tokens": False}, data.splits["train"][0]
    said = [*data.tokenizer("mat", **plain)["input_ids"], data.tokenizer.eos_token_id]
    given = data.tokenizer("cat dog bird hill 1", **plain)["input_ids"]
    assert len(given) > 9
    assert row["input_ids"] == [data.tokenizer.bos_token_id, *given[len(said) - 9 :], *said]


def test_an_answer_too_long_alone_loses_its_end(prompted):
    answer = "the cat sat on the mat and then"
    data = prompted([{"q": "bird", "n": 1, "a": answer}] * 2, validation_rows=1, max_length=5)
    row = data.splits["train"][0]
    said = data.tokenizer(answer, add_special_tokens=False)["input_ids"][:4]
    assert row["input_ids"] == [data.tokenizer.bos_token_id, *said]
    assert row["labels"] == [-100, *said]


def test_rows_held_out_are_not_trained_on(prompted):
    data = prompted()
    train, held = texts(data, "train"), texts(data, "val")
    assert (len(train), len(held)) == (15, 6)
    assert len({*train, *held}) == 21


def test_the_rows_held_out_depend_on_the_seed(prompted):
    first = texts(prompted(), "val")
    assert texts(prompted(), "val") == first
    assert texts(prompted(seed=1), "val") != first


def test_a_validation_split_is_used_where_there_is_one(prompted):
    data = prompted(validation=QUESTIONS[:2])
    assert (len(data.splits["train"]), len(data.splits["val"])) == (21, 2)


def test_a_data_set_on_the_hub_is_asked_for_its_splits(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda path, config: ["train", "test"])
    assert split_exists("someone/something", "test")
    assert not split_exists("someone/something", "validation")


def test_a_subset_is_a_subfolder(tmp_path, decoder_folder):
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", "test", QUESTIONS[:2])
    data = PromptedText(str(tmp_path), "{q}", "{a}", subset="inner", tokenizer=decoder_folder("llama"))
    data.setup("test")
    assert len(data.splits["test"]) == 2


def test_batches_are_padded_on_the_right_and_padding_is_not_scored(prompted):
    data = prompted()
    data.tokenizer.padding_side = "left"
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, 6, 7]}]
    rows += [{"input_ids": [8], "attention_mask": [1], "labels": [8]}]
    batch = data.collate(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8] + [data.tokenizer.pad_token_id] * 2]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "{question}"}, "no column question; its columns are q, n, a"),
        ({"answer": "a"}, r"data.answer: a is a column's name; write '\{a\}'"),
        ({"answer": "{a"}, r"data.answer: '\{a'.*a column is \{column\}"),
        ({"answer": "{}"}, "the name of a column and nothing else"),
        ({"prompt": "{n:3d}"}, "the name of a column and nothing else"),
        ({"prompt": r"{q}\n"}, "holds a backslash and an n"),
        ({"validation_rows": 21}, "of its 21 train rows 21 can't be held out"),
        ({"validation_rows": 0}, "validation_rows must be at least 1"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"rows": [QUESTIONS[0], QUESTIONS[0] | {"a": " "}]}, "train.jsonl, line 2: the answer is empty"),
        ({"max_length": 4, "too_long": "error"}, r"train.jsonl, line 1: \d+ tokens, above the 4 of a row"),
        ({"max_length": 4, "too_long": "skip"}, "no row of split train of .* is left"),
        ({"template": "stanford"}, "there is no stanford; there are plain, alpaca, llm-adapters, chat"),
        ({"template": "chat"}, "the tokenizer has no chat template"),
        ({"rows": [QUESTIONS[0], QUESTIONS[0] | {"q": None}]}, "line 2: q is None, not text; mend the row"),
        ({"rows": [QUESTIONS[0] | {"q": ["the cat"]}]}, r"line 1: q is \['the cat'\], not text"),
    ],
)
def test_prompted_text_refuses_what_it_can_not_use(prompted, options, message):
    with pytest.raises(InputError, match=message):
        prompted(**options)


def test_rows_of_more_characters_are_left_out_whatever_their_tokens(prompted):
    rows = [{"q": "the cat", "a": "sat"}, {"q": "the bird", "a": "sat"}] * 2
    data = prompted(rows, prompt="{q}\n", max_characters=len("the cat\nsat"), validation_rows=1)
    assert texts(data, "train") + texts(data, "val") == ["the cat sat"] * 2


def test_a_tokenizer_without_eos_is_refused(prompted, backbone_folder):
    with pytest.raises(InputError, match="no EOS token"):
        prompted(tokenizer=backbone_folder("llama"))


def windows(path, decoder_folder, bos=True, **options):
    data = TextWindows(str(path), tokenizer=decoder_folder("llama", bos), **{"max_length": 8} | options)
    data.setup("validate")
    return data


@pytest.fixture
def text(tmp_path):
    """30 tokens in two files."""
    (tmp_path / "b.txt").write_text("the cat sat on the mat " * 3)
    (tmp_path / "a.txt").write_text("the bird flew over the hill " * 2)
    return tmp_path


@pytest.mark.parametrize(("bos", "step"), [(True, 7), (False, 8)])
def test_windows_follow_each_other_through_the_files_in_order(text, decoder_folder, bos, step):
    data = windows(text, decoder_folder, bos)
    rows = data.splits["val"]["input_ids"]
    whole = (text / "a.txt").read_text() + "\n" + (text / "b.txt").read_text()
    ids = data.tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert len(rows) == len(ids) // step
    assert [token for row in rows for token in row[8 - step :]] == ids[: len(rows) * step]
    assert all(len(row) == 8 for row in rows)
    assert not bos or all(row[0] == data.tokenizer.bos_token_id for row in rows)


def test_only_the_first_windows_are_read_under_a_limit(text, decoder_folder):
    every, two = (windows(text, decoder_folder, limit=limit).splits["val"]["input_ids"] for limit in (None, 2))
    assert list(two) == list(every)[:2]


@pytest.mark.parametrize("bos", [True, False])
def test_pages_are_texts_by_themselves_each_cut(tmp_path, decoder_folder, bos):
    pages = ["the cat sat on the mat and the bird flew over", "", "the hill", "the", "the mat the cat"]
    write(tmp_path, "train", [{"text": page} for page in pages])
    data = windows(tmp_path, decoder_folder, bos, pages=True)
    ids = [data.tokenizer(page)["input_ids"][:8] for page in pages if page.strip()]
    assert list(data.splits["val"]["input_ids"]) == [page for page in ids if len(page) > 1]
    assert len(windows(tmp_path, decoder_folder, bos, pages=True, limit=2).splits["val"]) == 2


def test_padding_of_a_page_is_no_label(tmp_path, decoder_folder):
    write(tmp_path, "train", [{"text": "the cat sat"}, {"text": "the"}])
    batch = next(iter(windows(tmp_path, decoder_folder, pages=True).val_dataloader()[0]))
    assert torch.equal(batch["labels"] == -100, batch["attention_mask"] == 0)
    assert (batch["labels"][1] == -100).any()


def test_all_tokens_of_a_window_are_labels(text, decoder_folder):
    batch = next(iter(windows(text, decoder_folder).val_dataloader()[0]))
    assert torch.equal(batch["labels"], batch["input_ids"])


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("a.txt", {"max_length": 40}, "fewer than the 39 of a window"),
        ("a.txt", {"max_length": 49}, "49 is above the 48 that the model reads"),
        ("a.txt", {"max_length": 1}, "max_length must be at least 2"),
        ("a.txt", {"limit": 0}, "limit must be at least 1"),
        ("one.txt", {"pages": True}, "has no page of two tokens"),
        ("none.txt", {}, "there is no file .*none.txt"),
        ("empty", {}, "has no .txt file"),
    ],
)
def test_windows_refuse_what_they_can_not_read(text, decoder_folder, path, options, message):
    (text / "empty").mkdir()
    (text / "one.txt").write_text("\n")
    with pytest.raises(InputError, match=message):
        windows(text / path, decoder_folder, **options)
