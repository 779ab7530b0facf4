"""Which files are a split: under its usual names, one at a time, and never passed over in silence."""

import json
import logging

import datasets
import pytest
from conftest import WORDS
from lit_spectral.datamodules import GLUE, PromptedText
from lit_spectral.datamodules.corpora import read_passages
from lit_spectral.datamodules.files import read_split, split_exists
from lit_spectral.datamodules.sources import name_row, source_of

from lit_spectral.errors import InputError


def write(folder, name, count=3):
    """Rows in a file, whose format its name says."""
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    rows = [{"text": f"the {word}", "label": number % 2} for number, word in enumerate(WORDS[:count])]
    if name.lower().endswith("parquet"):
        datasets.Dataset.from_list(rows).to_parquet(str(file))
    elif name.lower().endswith("csv"):
        file.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))


USUAL = [
    *(
        "validation.jsonl",
        "val.jsonl",
        "valid.json",
        "dev.csv",
        "eval.parquet",
        "Val.jsonl",
        "VALIDATION.CSV",
        "Dev.JSONL",
    ),
    *("evaluation.jsonl", "development.json", "val-00000-of-00001.jsonl", "validation-00000-of-00001.parquet"),
]


@pytest.mark.parametrize("name", USUAL)
def test_a_split_goes_by_its_usual_names(name, tmp_path, caplog):
    write(tmp_path, "train.jsonl", 5)
    write(tmp_path, name)
    assert split_exists(str(tmp_path), "validation")
    with caplog.at_level(logging.INFO):
        assert len(read_split(str(tmp_path), "validation")) == 3
    said = f"split validation is read from {name}" in caplog.text
    assert said == (not name.startswith("validation"))
    assert name_row(source_of(str(tmp_path), "validation"), 1).startswith(f"{tmp_path / name}, ")


@pytest.mark.parametrize(
    ("name", "split"), [("Training.jsonl", "train"), ("testing.csv", "test"), ("TEST.json", "test")]
)
def test_so_do_the_others(name, split, tmp_path):
    write(tmp_path, name)
    assert len(read_split(str(tmp_path), split)) == 3


def test_prompts_are_validated_on_val(tmp_path, decoder_folder, caplog):
    write(tmp_path, "train.jsonl", 10)
    write(tmp_path, "val.jsonl")
    data = PromptedText(str(tmp_path), "{text}", "{label}", tokenizer=decoder_folder())
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert [len(data.splits[name]) for name in ("train", "val")] == [10, 3]
    assert "held out" not in caplog.text


def test_rows_that_are_held_out_are_told(tmp_path, decoder_folder, caplog):
    write(tmp_path, "train.jsonl", 10)
    data = PromptedText(str(tmp_path), "{text}", "{label}", validation_rows=4, tokenizer=decoder_folder())
    with caplog.at_level(logging.INFO):
        data.setup("fit")
        data.setup("fit")
    assert caplog.text.count("4 of 10 training rows are held out to validate on") == 1


@pytest.mark.parametrize("end", ["_matched", "-matched"])
@pytest.mark.parametrize("name", ["dev", "Validation", "val"])
def test_mnlis_ends_are_kept_apart(name, end, tmp_path):
    write(tmp_path, f"{name}{end}.jsonl")
    write(tmp_path, f"{name}{end.replace('matched', 'mismatched')}.csv", 5)
    data = GLUE("mnli", str(tmp_path))
    assert (len(data.rows("val")), len(data.rows("val_mismatched"))) == (3, 5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("val.jsonl", "validation.jsonl"),
        ("dev.csv", "val.csv"),
        ("Val.json", "val.jsonl"),
        ("validation.csv", "validation.jsonl"),
        ("validation-00000-of-00001.jsonl", "validation.jsonl"),
        ("val-00000-of-00001.jsonl", "val-00000-of-00002.jsonl"),
    ],
)
def test_two_that_could_be_a_split_are_both_named(first, second, tmp_path):
    write(tmp_path, first)
    write(tmp_path, second)
    message = rf"has {first} and {second}, and both could be split validation; move one out"
    for ask in (split_exists, read_split, source_of):
        with pytest.raises(InputError, match=message):
            ask(str(tmp_path), "validation")


def test_a_missing_part_is_named(tmp_path):
    write(tmp_path, "train-00001-of-00003.jsonl")
    write(tmp_path, "train-00000-of-00003.jsonl")
    with pytest.raises(InputError, match=r"has train-00000-of-00003.jsonl, but no train-00002-of-00003.jsonl; add it"):
        read_split(str(tmp_path), "train")
    write(tmp_path, "train-00002-of-00003.jsonl")
    assert len(read_split(str(tmp_path), "train")) == 9


@pytest.mark.parametrize(
    "name",
    [
        *("dev.tsv", "val.jsonl.gz", "validation.txt", "Valid.ndjson", "val.xlsx", "val.zip"),
        *("validation_set.json", "dev-v2.0.json", "alpaca_val.jsonl", "validation_matched.jsonl", "validation/0.jsonl"),
    ],
)
def test_what_is_plainly_meant_and_can_not_be_read_is_named(name, tmp_path, decoder_folder):
    write(tmp_path, "train.jsonl", 10)
    write(tmp_path, name)
    data = PromptedText(str(tmp_path), "{text}", "{label}", validation_rows=4, tokenizer=decoder_folder())
    message = rf"has {name.split('/')[0]}, but it can't be read as split validation; give it as validation.jsonl, "
    with pytest.raises(InputError, match=message) as raised:
        data.setup("fit")
    assert "\n" not in str(raised.value)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "train.jsonl").mkdir()
    with pytest.raises(InputError, match=r"has train.jsonl, but it can't be read as split train"):
        read_split(str(tmp_path), "train")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "val.py",
            "validation.md",
            ".val.jsonl.swp",
            "val.jsonl.bak",
            "alpaca_eval.json",
            "values.jsonl",
            "test.jsonl",
        ),
        *("devices.csv", "train_val.jsonl", "validation/readme.md"),
    ],
)
def test_other_files_are_no_split(name, tmp_path):
    write(tmp_path, "train.jsonl")
    write(tmp_path, name)
    assert not split_exists(str(tmp_path), "validation")


def test_a_file_that_is_read_is_not_disturbed_by_what_it_came_from(tmp_path):
    write(tmp_path, "val.jsonl")
    write(tmp_path, "dev.tsv")
    assert split_exists(str(tmp_path), "validation")


def test_a_corpus_is_read_from_val_before_train(tmp_path):
    write(tmp_path, "train.jsonl", 5)
    write(tmp_path, "val.jsonl", 1)
    assert list(read_passages(str(tmp_path))) == ["the the\n"]


@pytest.fixture
def hub(monkeypatch):
    """A data set on the hub with splits of these names."""

    def make(*names):
        def load(path, config, split):
            if split not in names:
                raise ValueError(f'Unknown split "{split}". Should be one of {[*names]}.')
            return datasets.Dataset.from_dict({"text": [split]})

        monkeypatch.setattr(datasets, "load_dataset", load)
        monkeypatch.setattr(datasets, "get_dataset_split_names", lambda path, config: [*names])

    return make


@pytest.mark.parametrize(
    ("names", "found"),
    [(("train", "dev"), "dev"), (("train", "valid"), "valid"), (("val", "validation"), "validation")],
)
def test_the_hubs_splits_go_by_the_same_names(names, found, hub):
    hub(*names)
    assert split_exists("someone/something", "validation")
    assert read_split("someone/something", "validation")["text"][:] == [found]


def test_two_of_the_hubs_splits_are_both_named(hub):
    hub("dev", "val")
    for ask in (split_exists, read_split):
        with pytest.raises(InputError, match="has splits dev and val, and both could be validation"):
            ask("someone/something", "validation")


def test_a_split_that_the_hub_has_not_is_told(hub):
    hub("train", "test")
    assert not split_exists("someone/something", "validation")
    with pytest.raises(InputError, match='Unknown split "validation"'):
        read_split("someone/something", "validation")
