import json
import shutil

import pytest
import torch
from conftest import WORDS
from lit_spectral.datamodules import GLUE, MaskedText, PromptedText, PythonDocs, TextWindows
from lit_spectral.datamodules.files import split_exists
from lit_spectral.datamodules.glue import TASKS
from lit_spectral.datamodules.python_docs import AREAS, sentences
from lit_spectral.datamodules.sampler import LengthGroupedSampler

from lit_spectral.errors import InputError

LENGTHS = torch.randint(3, 60, (1001,), generator=torch.Generator().manual_seed(0)).tolist()


def sampler(shuffle=True, world=1, rank=0, epoch=0, seed=0, size=16):
    made = LengthGroupedSampler(LENGTHS, size, shuffle, world, rank, seed)
    made.set_epoch(epoch)
    return list(made)


def test_every_row_comes_once_an_epoch():
    assert sorted(sampler()) == list(range(1001))


def test_order_depends_on_seed_and_epoch_alone():
    assert sampler() == sampler()
    assert sampler(epoch=1) != sampler()
    assert sampler(seed=1) != sampler()


def test_batches_hold_rows_of_similar_length():
    order = sampler()
    spread = [max(c) - min(c) for c in ([LENGTHS[i] for i in order[k : k + 16]] for k in range(0, 992, 16))]
    assert sum(spread) / len(spread) < 6  # about 50 when unsorted


def test_processes_train_on_equal_shares_of_the_same_batches():
    shares = [sampler(world=2, rank=rank) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 501
    assert set(shares[0]) | set(shares[1]) == set(range(1001))


def test_processes_evaluate_each_row_exactly_once():
    shares = [sampler(shuffle=False, world=2, rank=rank) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == list(range(1001))
    assert len(LengthGroupedSampler(LENGTHS, 16, False, 2, 1, 0)) == len(shares[1])


def write(folder, split, rows, suffix="jsonl"):
    import datasets

    rows = datasets.Dataset.from_list(rows)
    {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[suffix](str(folder / f"{split}.{suffix}"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_reads_its_columns_from_a_folder(task, suffix, tmp_path, backbone_folder):
    columns = TASKS[task].text_columns
    splits = ["train", "validation_matched", "validation_mismatched"] if task == "mnli" else ["train", "validation"]
    for split in splits:
        rows = [dict.fromkeys(columns, "the cat sat") | {"label": label, "idx": label} for label in (0, 1)]
        write(tmp_path, split, rows, suffix)
    data = GLUE(task, str(tmp_path), batch_size=2, tokenizer=backbone_folder("bert"))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].dtype == (torch.float32 if task == "stsb" else torch.int64)
    assert len(data.val_dataloader()) == len(data.evaluation_sets) == (2 if task == "mnli" else 1)


def glue(folder, backbone_folder, task="mrpc"):
    data = GLUE(task, str(folder), tokenizer=backbone_folder("bert"))
    data.setup("fit")


GOOD = {"sentence1": "the cat", "sentence2": "a cat", "label": 1, "idx": 0}


def test_a_missing_folder_is_named(backbone_folder):
    with pytest.raises(InputError, match=r"no folder ./nowhere"):
        glue("./nowhere", backbone_folder)


def test_an_unreachable_hub_names_the_remedy(backbone_folder):
    with pytest.raises(InputError, match=r"--data.path FOLDER"):
        glue("someone/nothing", backbone_folder)


def test_a_missing_split_is_named(tmp_path, backbone_folder):
    write(tmp_path, "train", [GOOD])
    with pytest.raises(InputError, match="no file for split validation"):
        glue(tmp_path, backbone_folder)


def test_a_missing_column_is_named_beside_those_there_are(tmp_path, backbone_folder):
    write(tmp_path, "train", [{"sentence1": "the cat", "label": 1}])
    with pytest.raises(InputError, match=r"no column sentence2; its columns are sentence1, label"):
        glue(tmp_path, backbone_folder)


@pytest.mark.parametrize(("task", "label"), [("mrpc", 2), ("mrpc", -1), ("stsb", 5.5)])
def test_a_label_outside_the_range_is_named_with_its_row(tmp_path, backbone_folder, task, label):
    write(tmp_path, "train", [GOOD, GOOD | {"label": label}])
    with pytest.raises(InputError, match=rf"split train, row 1: label {label}.* outside 0 to"):
        glue(tmp_path, backbone_folder, task)


def test_hidden_labels_are_called_so(tmp_path, backbone_folder):
    write(tmp_path, "train", [GOOD | {"label": -1}])
    with pytest.raises(InputError, match="hidden"):
        glue(tmp_path, backbone_folder)


@pytest.mark.parametrize(("name", "content"), [("train.csv", "sentence1,sentence2,label\n"), ("train.jsonl", "")])
def test_an_empty_split_is_refused(tmp_path, backbone_folder, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"split train .* is empty"):
        glue(tmp_path, backbone_folder)


def test_text_that_is_none_is_named_with_its_row(tmp_path, backbone_folder):
    write(tmp_path, "train", [GOOD, GOOD | {"sentence2": None}])
    with pytest.raises(InputError, match=r"split train, row 1: sentence2 is None, not text"):
        glue(tmp_path, backbone_folder)


def test_words_that_look_missing_stay_words_in_csv(tmp_path):
    write(tmp_path, "train", [GOOD | {"sentence1": word} for word in ("None", "null", "n/a")], "csv")
    assert list(GLUE("mrpc", str(tmp_path)).rows("train")["sentence1"]) == ["None", "null", "n/a"]


def test_a_label_between_classes_is_refused(tmp_path, backbone_folder):
    write(tmp_path, "train", [GOOD | {"label": 1.0}, GOOD | {"label": 0.5}])
    with pytest.raises(InputError, match=r"row 1: label 0\.5 is no class"):
        glue(tmp_path, backbone_folder)


def test_a_broken_line_is_named_with_its_file(tmp_path, backbone_folder):
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:20])
    with pytest.raises(InputError, match=r"train.jsonl, line 2 can't be read: Unterminated string"):
        glue(tmp_path, backbone_folder)


def test_a_broken_list_is_named_with_its_line(tmp_path, backbone_folder):
    (tmp_path / "train.json").write_text(json.dumps([GOOD, GOOD], indent=0).replace("}\n]", ""))
    with pytest.raises(InputError, match=r"train.json, line \d+ can't be read: Expecting"):
        glue(tmp_path, backbone_folder)


def test_batches_are_padded_to_their_longest_row(tmp_path, backbone_folder):
    write(tmp_path, "train", [GOOD | {"sentence1": "the cat sat on the mat"}] * 2 + [GOOD] * 2)
    write(tmp_path, "validation", [GOOD])
    data = GLUE("mrpc", str(tmp_path), batch_size=2, tokenizer=backbone_folder("bert"))
    data.setup("fit")
    widths = {batch["input_ids"].shape[1] for batch in data.train_dataloader()}
    assert len(widths) == 2


def test_python_docs_have_all_classes_in_both_splits_and_share_no_sentence():
    train, validation = PythonDocs().rows("train"), PythonDocs().rows("val")
    assert set(train["label"]) == set(validation["label"]) == set(range(len(AREAS)))
    assert not set(train["sentence"]) & set(validation["sentence"])
    assert len(sentences()) > 5000


@pytest.fixture
def masked(tmp_path, backbone_folder):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and then slept again\n" * 200)

    def make(**options):
        data = MaskedText(str(tmp_path / "text.txt"), tokenizer=backbone_folder("bert"), **options)
        data.setup("fit")
        return data

    return make


def test_evaluation_masks_do_not_depend_on_the_batch(masked):
    def labels(batch_size):
        data = masked(eval_batch_size=batch_size, validation_fraction=0.2)
        return torch.cat([batch["labels"] for batch in data.val_dataloader()[0]])

    assert torch.equal(labels(3), labels(40))


def test_masking_follows_bert(masked):
    data = masked(validation_fraction=0.5, mask_fraction=0.3, eval_batch_size=100)
    batch = next(iter(data.val_dataloader()[0]))
    chosen = batch["labels"] != -100
    content = batch["input_ids"].numel() - 2 * len(batch["input_ids"])  # all rows are equally long
    assert chosen.sum() / content == pytest.approx(0.3, abs=0.03)
    became_mask = batch["input_ids"][chosen] == data.tokenizer.mask_token_id
    assert became_mask.float().mean() == pytest.approx(0.8, abs=0.06)
    unchanged = batch["input_ids"][chosen] == batch["labels"][chosen]
    assert unchanged.float().mean() == pytest.approx(0.1, abs=0.06)
    assert not chosen[:, 0].any()


def test_training_masks_change_with_the_epoch(masked):
    data = masked()
    data.trainer = type("T", (), {"training": True, "world_size": 1, "global_rank": 0})()
    rows = [data.splits["train"][i] for i in range(4)]
    assert not torch.equal(data.collate([dict(r) for r in rows])["labels"], data.collate(rows)["labels"])


@pytest.mark.parametrize(("content", "message"), [(b"\xff\xfe\xff", "not UTF-8"), (b"one line", "fewer than two")])
def test_text_that_can_not_be_used_is_refused(tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        MaskedText(str(tmp_path / "text.txt"))._lines()


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
        ({"validation_rows": 0}, "validation_rows 1"),
        ({"max_length": 1}, "max_length is at least 2"),
        ({"rows": [QUESTIONS[0], QUESTIONS[0] | {"a": " "}]}, "train.jsonl, line 2: the answer is empty"),
        ({"max_length": 4, "too_long": "error"}, r"train.jsonl, line 1: \d+ tokens, above the 4 of a row"),
        ({"max_length": 4, "too_long": "skip"}, "no row of split train of .* is left"),
        ({"template": "stanford"}, "there is no stanford; there are plain, alpaca, llm-adapters, chat"),
        ({"template": "chat"}, "the tokenizer has no chat template"),
        ({"rows": [QUESTIONS[0], QUESTIONS[0] | {"q": None}]}, "row 1: q is None, neither text nor a number"),
        ({"rows": [QUESTIONS[0] | {"q": ["the cat"]}]}, r"row 0: q is \['the cat'\], neither"),
    ],
)
def test_prompted_text_refuses_what_it_can_not_use(prompted, options, message):
    with pytest.raises(InputError, match=message):
        prompted(**options)


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


def test_all_tokens_of_a_window_are_labels(text, decoder_folder):
    batch = next(iter(windows(text, decoder_folder).val_dataloader()[0]))
    assert torch.equal(batch["labels"], batch["input_ids"])


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("a.txt", {"max_length": 40}, "fewer than the 39 of a window"),
        ("a.txt", {"max_length": 49}, "49 is above the 48 that the model reads"),
        ("a.txt", {"max_length": 1}, "max_length is at least 2"),
        ("a.txt", {"limit": 0}, "limit at least 1"),
        ("none.txt", {}, "there is no file .*none.txt"),
        ("empty", {}, "has no .txt file"),
    ],
)
def test_windows_refuse_what_they_can_not_read(text, decoder_folder, path, options, message):
    (text / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        windows(text / path, decoder_folder, **options)
