"""Corpora: every form gives the same text, and no more is read than is needed."""

import json
import re

import datasets
import pytest
from conftest import WORDS
from lit_spectral.datamodules import MaskedText, TextWindows
from lit_spectral.datamodules.corpora import CORPORA, check_corpus, read_passages, read_training_passages

from lit_spectral.errors import InputError

TEXTS = [" ".join(WORDS[k : k + 6]) + "\n" for k in range(10)]


def rows(file, texts):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"text": text, "id": 0}) + "\n" for text in texts))
    return file


def test_files_folders_and_splits_give_the_same_text(tmp_path):
    (tmp_path / "text.txt").write_text("".join(TEXTS))
    lines = rows(tmp_path / "lines" / "validation.jsonl", TEXTS)
    rows(lines.with_name("train.jsonl"), ["not this"])
    without_ends = rows(tmp_path / "x.jsonl", [text.rstrip("\n") for text in TEXTS])
    found = {"".join(read_passages(str(path))) for path in (tmp_path / "text.txt", lines, lines.parent, without_ends)}
    assert found == {"".join(TEXTS)}


def test_a_folder_s_rows_to_validate_on_are_not_trained_on(tmp_path):
    for split in ("train", "validation", "test"):
        rows(tmp_path / f"{split}.jsonl", [split])
    found = [next(read(str(tmp_path))) for read in (read_training_passages, read_passages)]
    assert found == ["train\n", "validation\n"]


@pytest.mark.parametrize("data", [TextWindows, MaskedText])
def test_a_corpus_to_measure_on_is_not_trained_on(data, decoder_folder):
    module = data("wikitext-2", validation_fraction=0.5, max_length=8, tokenizer=decoder_folder())
    with pytest.raises(InputError, match="of wikitext-2 the validation split is read, to measure on and not to train"):
        module.tokenised("train")


def test_a_corpus_by_name_is_streamed(monkeypatch, tmp_path):
    asked = {}

    def load(hub_id, subset, **options):
        asked.update(hub_id=hub_id, subset=subset, **options)
        return datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_passages("wikitext-103")) == TEXTS
    assert asked["streaming"]
    assert (asked["hub_id"], asked["subset"], asked["split"]) == CORPORA["wikitext-103"][:3]


def test_the_hub_out_of_reach_says_what_to_give():
    with pytest.raises(InputError, match=r"pg19 .* is not to be had from the hub now; give a file or folder"):
        list(read_passages("pg19"))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("x.jsonl", {"body": "a"}, "no column text"),
        ("x.jsonl", {"text": [3]}, r"x.jsonl, line 1: text is \['3'\], not text"),
    ],
)
def test_rows_without_text_are_named(tmp_path, name, row, message):
    (tmp_path / name).write_text(json.dumps(row))
    with pytest.raises(InputError, match=message):
        list(read_passages(str(tmp_path / name)))


def test_a_folder_with_neither_text_nor_rows_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"has no \.txt file, nor a split of rows"):
        list(read_passages(str(tmp_path)))


@pytest.fixture
def endless(monkeypatch):
    """Passages without end, counted as they are read, in the place of every corpus."""
    read = []

    def passages(path):
        while True:
            read.append(TEXTS[0] * 400)
            yield read[-1]

    for module in ("text_windows", "masked_text"):
        monkeypatch.setattr(f"lit_spectral.datamodules.{module}.read_passages", passages)
    return read


def test_windows_stop_reading_where_they_have_enough(endless, decoder_folder):
    data = TextWindows("x", limit=5, max_length=8, tokenizer=decoder_folder())
    data.setup("validate")
    assert len(data.splits["val"]) == 5
    assert len(endless) < 300  # one chunk of two million characters


def test_passages_stop_reading_where_they_have_enough(endless, backbone_folder):
    data = MaskedText("x", limit=500, validation_fraction=1, tokenizer=backbone_folder("bert"))
    data.setup("validate")
    assert len(endless) == 2  # of 400 lines each
    assert len(data.splits["val"]) == 500


@pytest.mark.parametrize(
    ("given", "said"),
    [("python-doc", "did you mean python-docs?"), ("wikitxt-2", "did you mean wikitext-2?"), ("pile", "python-docs")],
)
def test_a_text_that_there_is_not_is_told_the_nearest(given, said):
    with pytest.raises(InputError, match=rf"^there is no text {given};.*{re.escape(said)}"):
        check_corpus(given)
