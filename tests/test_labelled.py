"""Labelled text of one's own: any columns, any classes, in a file or a folder."""

import csv
import json
import logging

import pytest
from conftest import WORDS
from lit_spectral.datamodules import LabelledText

from lit_spectral import cli
from lit_spectral.errors import InputError

TEAMS = ["payment", "delivery", "Account"]


def tickets(count=30, text="message", label="team", labels=TEAMS):
    return [{"id": str(n), text: f"the {WORDS[n % 18]} ran", label: labels[n % len(labels)]} for n in range(count)]


def write(file, rows):
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def read(backbone_folder):
    """A data module that has read what training needs."""

    def make(path, text="message", label="team", **settings):
        data = LabelledText(str(path), text, label, tokenizer=backbone_folder("bert"), **settings)
        data.setup("fit")
        return data

    return make


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_one_file_is_trained_on_but_for_what_is_held_out(tmp_path, read, caplog, suffix):
    file = write(tmp_path / f"tickets.{suffix}", tickets())
    with caplog.at_level(logging.INFO):
        data = read(file, validation_fraction=0.2)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 24, "val": 6}
    assert (data.num_labels, data.label_names) == (3, ["Account", "delivery", "payment"])
    assert f"{file}: no validation split; 6 of 30 rows are held out" in caplog.messages
    again = read(file, validation_fraction=0.2)
    assert again.splits["val"]["input_ids"] == data.splits["val"]["input_ids"]
    other = read(file, validation_fraction=0.2, seed=1)
    assert other.splits["val"]["input_ids"] != data.splits["val"]["input_ids"]


def test_every_row_keeps_its_own_label(tmp_path, read):
    rows = [{"message": word, "team": TEAMS[n % 3]} for n, word in enumerate(WORDS)]
    data = read(write(tmp_path / "tickets.csv", rows), validation_fraction=0.3)
    labels = {}
    for split in data.splits.values():
        labels |= {data.tokenizer.decode(row["input_ids"][1:-1]): row["labels"] for row in split}
    assert labels == {row["message"]: data.label_names.index(row["team"]) for row in rows}


def test_a_folder_s_own_splits_are_used_whole(tmp_path, read):
    write(tmp_path / "train.csv", tickets(9))
    write(tmp_path / "dev.jsonl", tickets(4))
    data = read(tmp_path)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 9, "val": 4}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["1.0", "1", "x"], ["x", "1", "1.0"]),
        (["no", "NO", "yes"], ["NO", "yes"]),
    ],
)
def test_each_text_is_a_class_and_numbers_come_by_their_size(tmp_path, read, labels, names):
    assert read(write(tmp_path / "tickets.csv", tickets(labels=labels))).label_names == names


def test_a_column_called_label_is_one_like_others(tmp_path, read):
    assert read(write(tmp_path / "tickets.csv", tickets(label="label")), label="label").num_labels == 3


def test_named_classes_have_the_order_that_they_are_given_in(tmp_path, read):
    data = read(write(tmp_path / "tickets.csv", tickets()), classes=["payment", "refund", "account", "delivery"])
    assert {*data.splits["train"]["labels"], *data.splits["val"]["labels"]} == {0, 2, 3}


def test_pairs_are_read_as_pairs_and_numbers_as_numbers(tmp_path, read):
    rows = [{"first": "the cat", "second": "the dog", "label": n / 4} for n in range(12)]
    data = read(write(tmp_path / "pairs.csv", rows), ["first", "second"], "label", regression=True)
    row = data.splits["train"][0]
    assert row["input_ids"] == data.tokenizer("the cat", "the dog")["input_ids"]
    assert (data.num_labels, data.label_names, data.metrics[0]) == (1, None, "pearson")
    held = data.splits["val"]["labels"]
    assert sorted([*data.splits["train"]["labels"], *held]) == [n / 4 for n in range(12)]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (tickets(text="body"), {}, "tickets.csv: no column message; its columns are id, body, team"),
        (tickets(label="group"), {}, "tickets.csv: no column team; its columns are id, message, group"),
        (tickets(labels=["a"]), {}, "tickets.csv: all its labels are a; two classes at least are needed"),
        (tickets(labels=["0.5", "1.25"]), {}, r"its labels are numbers \(0.5, …\); give --data.regression true"),
        (tickets(labels=["0.5", "2", "1e999"]), {}, r"its labels are numbers \(0.5, …\); give --data.regression true"),
        (tickets(labels=["a", " "]), {}, "tickets.csv, line 3: its label is empty; mend the row or leave it out"),
        (tickets(labels=["1", "a"]), {"regression": True}, "label 'a' is no number; mend the row"),
        (tickets(1), {"classes": ["payment", "other"]}, "has no validation split, and 1 training rows are too few"),
        (tickets(), {"classes": ["payment", "delivery"]}, r"line \d+: label 'Account' is none of those trained on"),
        (tickets(), {"classes": ["payment"]}, "data.classes: give two or more names, each once"),
        (tickets(), {"text": "team"}, "data.text: team is not one column, or a list of two, none of them team"),
        (tickets(), {"text": "label"}, "data.text: label is not one column, or a list of two, none of them team"),
        (tickets(), {"validation_fraction": 1.0}, "data.validation_fraction lies between 0 and 1; it is 1.0"),
    ],
)
def test_what_can_not_be_used_is_named(tmp_path, read, rows, settings, message):
    with pytest.raises(InputError, match=message) as raised:
        read(write(tmp_path / "tickets.csv", rows), **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("split", "helps"), [("validation", True), ("train", False)])
def test_classes_are_to_be_named_where_no_rows_to_train_on_could_tell_them(tmp_path, read, split, helps):
    write(tmp_path / f"{split}.csv", tickets(label="group"))
    with pytest.raises(InputError) as raised:
        read(tmp_path)
    assert ("name the classes" in str(raised.value)) == helps


def test_a_label_that_was_never_trained_on_is_named_by_its_line(tmp_path, read):
    write(tmp_path / "train.csv", tickets(9))
    write(tmp_path / "validation.csv", tickets(4, labels=["payment", "delivery", "refund"]))
    with pytest.raises(InputError, match=r"validation.csv, line 4: label 'refund' is none of those trained on"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "tickets.jsonl is empty"),
        ('{"message": "a", "team": "b"}\n{"message":\n', r"tickets.jsonl, line 2 can't be read: Expecting value; "),
        (None, r"data.path: the file \S+tickets.jsonl is not there; give one of .jsonl, .json, .parquet, .csv, or a"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(tmp_path, read, content, message):
    if content is not None:
        (tmp_path / "tickets.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "tickets.jsonl")


def test_a_file_of_another_kind_is_named(tmp_path, read):
    (tmp_path / "tickets.tsv").write_text("a\tb\n")
    with pytest.raises(InputError, match=r"data.path: the file \S+tickets.tsv can't be read as rows; give one of"):
        read(tmp_path / "tickets.tsv")


def test_a_checkpoint_tells_the_classes_of_new_rows_without_labels(tmp_path, backbone_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tickets.csv", tickets())
    write(tmp_path / "new.csv", [{"message": "the cat ran"}, {"message": "the dog sat"}])
    model = ["--model=SequenceClassification", f"--model.backbone={backbone_folder('bert')}", "--data=LabelledText"]
    model += ["--data.text=message", "--data.label=team", "--data.batch_size=8", "--trainer.accelerator=cpu"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    logger = ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=runs", "--trainer.logger.name=x"]
    cli.run(["fit", *model, *quiet, *logger, "--data.path=tickets.csv", "--trainer.max_steps=1"])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    cli.run(["predict", *model, *quiet, "--data.path=new.csv", f"--ckpt_path={checkpoint}"])
    (file,) = tmp_path.rglob("predictions.jsonl")
    said = [json.loads(line) for line in file.read_text().splitlines()]
    assert [len(row["scores"]) for row in said] == [3, 3]
    assert {row["label"] for row in said} <= {*TEAMS}
