"""Data files that can't be read as a whole, columns that are missing, samples and settings that can't be used."""

import json
import re

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lit_spectral.datamodules import (
    GLUE,
    Commonsense,
    ConvAI2,
    Instructions,
    MaskedText,
    PromptedText,
)
from lit_spectral.datamodules.corpora import read_passages
from lit_spectral.datamodules.files import read_split
from test_row_errors import FUNCTION, LONG, TALK, fill, glue, one_line, squad

from lit_spectral.errors import InputError
from lit_spectral.scoring import humaneval


def wide(file):
    file.write_text('q,a\n"x\ny",2\n\n3,4,5\n')


def unclosed(file):
    file.write_text('q,a\n"x\ny",2\n\n3,"4\n5,6\n')


def twice(file):
    file.write_text("q,a,q\n1,2,3\n")


def zipped(file):
    file.write_bytes(b"PK\x03\x04" + bytes(20))


def columns_twice(file):
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), file)


def no_rows(file):
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), file)


def no_parquet(file):
    file.write_bytes(b"PAR1 nothing")


def nested(file):
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": "a", "qas": []}]}]}))


@pytest.mark.parametrize(
    ("make", "suffix", "message"),
    [
        (wide, "csv", ", line 5 can't be read: it has 3 fields, and the header 2; put quotes round"),
        (unclosed, "csv", ", line 5 can't be read: a quote opens in this row and never closes; mend it"),
        (twice, "csv", ", line 1 can't be read: it names column 'q' twice; rename one"),
        (zipped, "csv", " can't be read: it is a zip or Excel file; give it as text in .csv"),
        (columns_twice, "parquet", " can't be read: it has column 'a' twice; rename one"),
        (no_parquet, "parquet", " can't be read: .*; write it anew as Parquet"),
    ],
)
@pytest.mark.parametrize("shard", [False, True], ids=["alone", "second"])
def test_a_file_that_can_not_be_read_is_named(make, suffix, message, shard, tmp_path):
    file = tmp_path / f"train{'-00001-of-00002' * shard}.{suffix}"
    if shard:
        content = datasets.Dataset.from_dict({"q": ["1"], "a": ["2"]})
        {"csv": content.to_csv, "parquet": content.to_parquet}[suffix](tmp_path / f"train-00000-of-00002.{suffix}")
    make(file)
    assert re.search(f"{file}{message}", one_line(lambda: read_split(str(tmp_path), "train"), str(file)))


def test_parquet_without_rows_is_empty(tmp_path):
    no_rows(tmp_path / "train.parquet")
    with pytest.raises(InputError, match="is empty"):
        read_split(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("sentence1, sentence2,label", "no column sentence2; .*; take the blanks out of ' sentence2'"),
        (",".join(f"column{number}" for number in range(99)), "no column sentence1, sentence2, label; its .*…"),
    ],
)  # fmt: skip
def test_a_column_that_is_missing_is_named_with_the_file(header, message, tmp_path, backbone_folder):
    (tmp_path / "train.csv").write_text(f"{header}\n{'a,' * header.count(',')}1\n")
    assert re.search(message, one_line(lambda: glue(tmp_path, backbone_folder("bert")), str(tmp_path / "train.csv")))


def test_rows_that_lie_under_a_field_are_pointed_at(tmp_path, backbone_folder):
    nested(tmp_path / "train.json")
    said = one_line(lambda: squad(tmp_path, backbone_folder("bert")), str(tmp_path / "train.json"))
    assert "its columns are data; if the rows lie under the field 'data', make each a row of the file" in said


SAMPLE = json.dumps({"task_id": "x/0", "completion": "    return 1"})


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"task_id": "x/0", "completion": ' + "1" * 5000 + "}", '{"task_id": "x/0"', '{"a": 0}', "[1]"]
    + [json.dumps({"task_id": task, "completion": ""}) for task in ("x/1", LONG)],
    ids=lambda line: line[:40],
)  # fmt: skip
def test_a_sample_that_can_not_be_used_is_named(line, tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"task_id": "x/0"} | FUNCTION))
    file = tmp_path / "samples.jsonl"
    file.write_text(f"{SAMPLE}\n\n{line}\n")
    one_line(lambda: humaneval.evaluate(str(file), str(tmp_path)), str(file), 3)


def test_samples_may_begin_with_a_mark_of_utf_8(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"task_id": "x/0"} | FUNCTION))
    (tmp_path / "samples.jsonl").write_text(SAMPLE, encoding="utf-8-sig")
    with pytest.raises(InputError, match="allow it with --allow_code_execution"):
        humaneval.evaluate(str(tmp_path / "samples.jsonl"), str(tmp_path))


@pytest.mark.parametrize("seed", [2**32, 2**63 - 1, 2**64])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(InputError, match=r"seed must be below 2\*\*32"):
        PromptedText("x", "{q}", "{a}", seed=seed)
    assert PromptedText("x", "{q}", "{a}", seed=2**32 - 1).seed == 2**32 - 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptedText("x", "{q}", "{a}", num_workers=513), "num_workers must be at most 512"),
        (lambda: Commonsense(sets=[]), "data.sets: none is named; leave it out for all"),
        (lambda: Instructions(samples=0), "samples must be at least 1, not 0"),
        (lambda: read_split("", "train"), "data.path is empty; give a folder"),
        (lambda: list(read_passages("")), "data.path is empty; give a file"),
        (lambda: humaneval.evaluate("x", "y", timeout=1e300), "timeout must be at most 86400 seconds"),
    ],
)
def test_settings_that_can_not_be_used_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "label_names: a is there twice; give"),
        (["a", "b", "c"], "label_names: 3 names for 2 classes; give"),
    ],
)
def test_names_of_classes_are_one_a_class(names, message):
    with pytest.raises(InputError, match=message):
        GLUE("mrpc").use_label_names(names)


def test_lines_of_which_none_is_left_to_train_on_are_refused(tmp_path, backbone_folder):
    (tmp_path / "text.txt").write_text("the cat\nthe dog\n")
    with pytest.raises(InputError, match=r"0\.99 of 2 rows leaves none to train on; give less"):
        MaskedText(str(tmp_path / "text.txt"), validation_fraction=0.99, tokenizer=backbone_folder("bert")).setup("fit")


def test_conversations_without_replies_are_told_so(tmp_path):
    fill(tmp_path, "train", TALK | {"utterances": []}, {})
    one_line(lambda: ConvAI2(str(tmp_path)).rows("train"), f"{tmp_path}/train.jsonl holds no replies; give")
