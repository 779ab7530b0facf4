"""Labels of classes as numbers and as names, which numbers names have, and that a checkpoint keeps them."""

import json
import logging
import re

import datasets
import lightning.pytorch as pl
import pytest
import torch
from conftest import WORDS
from lit_spectral.datamodules import GLUE
from lit_spectral.datamodules.glue import TASKS

from lit_spectral import cli
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA
from lit_spectral.tasks import SequenceClassification

OFFICIAL = {
    "cola": "unacceptable acceptable",
    "sst2": "negative positive",
    "mrpc": "not_equivalent equivalent",
    "qqp": "not_duplicate duplicate",
    "mnli": "entailment neutral contradiction",
    "qnli": "entailment not_entailment",
    "rte": "entailment not_entailment",
}


def write(folder, split, labels, suffix="jsonl", columns=("sentence1", "sentence2"), features=None):
    """A split of rows with these labels."""
    folder.mkdir(exist_ok=True)
    rows = [dict.fromkeys(columns, "the cat sat") | {"label": label} for label in labels]
    rows = datasets.Dataset.from_list(rows, features=features)
    {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[suffix](str(folder / f"{split}.{suffix}"))


@pytest.fixture
def read(backbone_folder):
    """The numbers of the labels of each split that training reads, and the data module."""

    def make(folder, task="mrpc"):
        data = GLUE(task, str(folder), tokenizer=backbone_folder("bert"))
        data.setup("fit")
        return {name: rows["labels"][:] for name, rows in data.splits.items()}, data

    return make


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("task", OFFICIAL)
def test_glues_names_have_glues_numbers(task, suffix, tmp_path, read):
    names = OFFICIAL[task].split()
    given = [*reversed(names), *(name.upper() for name in names)]
    for split in (
        ["train", "validation_matched", "validation_mismatched"] if task == "mnli" else ["train", "validation"]
    ):
        write(tmp_path, split, given, suffix, TASKS[task].text_columns)
    found, data = read(tmp_path, task)
    assert found["train"] == found["val"] == [*reversed(range(len(names))), *range(len(names))]
    assert data.label_names == names


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("labels", [["1", "0"], [1, 0], [1.0, 0.0], ["1.0", " 0 "]])
def test_numbers_are_numbers_however_they_are_spelled(labels, suffix, tmp_path, read, caplog):
    for split in ("train", "validation"):
        write(tmp_path, split, labels, suffix)
    with caplog.at_level(logging.INFO):
        found, _ = read(tmp_path)
    assert found == {"train": [1, 0], "val": [1, 0]}
    assert "numbered" not in caplog.text


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_scores_may_be_spelled(suffix, tmp_path, read):
    for split in ("train", "validation"):
        write(tmp_path, split, ["3.8", "5"], suffix)
    assert read(tmp_path, "stsb")[0] == {"train": [3.8, 5.0], "val": [3.8, 5.0]}


def test_other_names_are_numbered_as_the_training_split_sorts_them(tmp_path, read, caplog):
    write(tmp_path, "train", ["yes", "maybe", "no"], "csv", TASKS["mnli"].text_columns)
    for split in ("validation_matched", "validation_mismatched"):
        write(tmp_path, split, ["yes", "yes", "NO"], "jsonl", TASKS["mnli"].text_columns)
    with caplog.at_level(logging.INFO):
        found, data = read(tmp_path, "mnli")
    assert found == {"train": [2, 0, 1], "val": [2, 2, 1], "val_mismatched": [2, 2, 1]}
    data.setup("fit")
    assert [r.message for r in caplog.records if "numbered" in r.message] == [
        "labels are numbered 0 maybe, 1 no, 2 yes"
    ]


@pytest.mark.parametrize(("suffix", "labels"), [("parquet", [True, False]), ("csv", ["True", "False"])])
def test_truth_is_a_name(suffix, labels, tmp_path, read):
    write(tmp_path, "train", labels, suffix)
    (tmp_path / "validation.jsonl").write_text(
        '{"sentence1": "a", "sentence2": "b", "label": false}\n{"sentence1": "a", "sentence2": "b", "label": true}\n'
    )
    found, data = read(tmp_path)
    assert found == {"train": [1, 0], "val": [0, 1]}
    assert [name.lower() for name in data.label_names] == ["false", "true"]


def test_a_column_that_names_its_classes_keeps_their_numbers(tmp_path, read):
    kinds = {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string")}
    features = datasets.Features(kinds | {"label": datasets.ClassLabel(names=["yes", "no"])})
    write(tmp_path, "train", [0, 1, 1], "parquet", features=features)
    write(tmp_path, "validation", ["no", "yes"], "csv")
    found, data = read(tmp_path)
    assert found == {"train": [0, 1, 1], "val": [1, 0]}
    assert data.label_names == ["yes", "no"]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (
            ["0", "equivalent"],
            [0],
            r"train.jsonl, line 2: label 'equivalent' is a word, and the first row's a number; write",
        ),
        (["equivalent", 0], [0], r"train.jsonl, line 2: label '0' is a number, and the first row's a word; write"),
        (
            ["yes", "no"],
            ["yes", "may be"],
            r"validation.jsonl, line 2: label 'may be' is none of those trained on: no, yes",
        ),
        (["yes", "no"], [0, 1], r"validation.jsonl: its labels are numbers, and the classes are called no, yes"),
        (
            ["equivalent"] * 2,
            ["yes"],
            r"validation.jsonl, line 1: label 'yes' is none of those trained on: not_equivalent",
        ),
        (["yes", "yes"], ["yes"], r"train.jsonl: its labels are 1 words \(yes\), and there are 2 classes"),
        (["a", "b", "equivalent"], ["a"], r"train.jsonl: its labels are 3 words \(a, b, equivalent\), and there are 2"),
        (["equivalent", " "], ["equivalent"], r"train.jsonl, line 2: its label is empty; mend"),
        (["equivalent", None], ["equivalent"], r"train.jsonl, line 2: its label is empty; mend"),
    ],
)
def test_labels_that_can_not_be_numbered_are_named(train, validation, message, tmp_path, read):
    for split, labels in (("train", train), ("validation", validation)):
        rows = [{"sentence1": "the cat", "sentence2": "sat", "label": label} for label in labels]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message) as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_score_that_is_a_word_is_named(tmp_path, read):
    write(tmp_path, "train", ["3.8", "high"], "csv")
    with pytest.raises(InputError, match=r"train.csv, line 3: label 'high' is no number; mend"):
        read(tmp_path, "stsb")


# Names whose order under training is the opposite of what other folders would give.
FIRST, SECOND = "same", "unlike"


def pairs(folder, split, names=(FIRST, SECOND), count=24, seed=0):
    """Pairs of sentences that are the same under the first name and not under the second."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(exist_ok=True)
    lines = ["sentence1,sentence2,label"]
    for number in range(count):
        one, other = (" ".join(WORDS[i] for i in torch.randint(18, (6,), generator=generator)) for _ in range(2))
        lines.append(f"{one},{other if number % 3 else one},{names[bool(number % 3)]}")
    (folder / f"{split}.csv").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, backbone_folder):
    """The checkpoint of two epochs on names, beside its data, and the trainer."""
    folder = tmp_path_factory.mktemp("names")
    pairs(folder, "train", count=64)
    pairs(folder, "validation", seed=1)
    pl.seed_everything(0)
    task = SequenceClassification(backbone_folder("bert"), LoRA(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    trainer = run(folder)
    trainer.fit(task, GLUE("mrpc", str(folder), batch_size=8))
    trainer.save_checkpoint(folder / "names.ckpt")
    return folder / "names.ckpt", trainer


def run(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(max_epochs=2, default_root_dir=folder, enable_checkpointing=False, **quiet, **options)


def fresh(backbone_folder):
    return SequenceClassification(backbone_folder("bert"), LoRA())


def test_the_model_and_its_checkpoint_know_the_names(trained):
    checkpoint, trainer = trained
    for task in (trainer.lightning_module, load(checkpoint)):
        assert task.label_names == [FIRST, SECOND]
        assert task.model.config.id2label == {0: FIRST, 1: SECOND}
        assert task.model.config.label2id == {FIRST: 0, SECOND: 1}


def accuracy(trainer):
    return float(trainer.callback_metrics["val/accuracy"])


@pytest.mark.parametrize("loaded", [True, False], ids=["in Python", "by ckpt_path"])
@pytest.mark.parametrize("other", [None, (SECOND, FIRST), ("x", "a")], ids=["none", "reversed", "of other names"])
def test_the_checkpoints_numbers_hold_whatever_the_training_split(trained, other, loaded, tmp_path, backbone_folder):
    checkpoint, trainer = trained
    expected = accuracy(trainer)
    assert expected != 0.5  # else another order would do as well
    folder = tmp_path / "other"
    pairs(folder, "validation", seed=1)
    if other is not None:
        pairs(folder, "train", other)
    trainer, data = run(tmp_path), GLUE("mrpc", str(folder), batch_size=8)
    if loaded:
        trainer.validate(load(checkpoint), data, verbose=False)
    else:
        trainer.validate(fresh(backbone_folder), data, ckpt_path=checkpoint, verbose=False)
    assert data.splits["val"]["labels"][:] == [int(number % 3 > 0) for number in range(24)]
    assert accuracy(trainer) == pytest.approx(expected)


def test_training_that_goes_on_keeps_the_checkpoints_numbers(trained, tmp_path, backbone_folder):
    checkpoint, _ = trained
    data = GLUE("mrpc", str(checkpoint.parent), batch_size=8)
    data.use_label_names([SECOND, FIRST])
    run(tmp_path).fit(fresh(backbone_folder), data, ckpt_path=checkpoint)
    assert data.label_names == [FIRST, SECOND]
    assert data.splits["train"]["labels"][:3] == [0, 1, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("same", "no"), r"validation.csv, line 3: label 'no' is none of those trained on: same, unlike"),
        (
            ("1", "0"),
            r"validation.csv: its labels are numbers, and the classes are called same, unlike; write their names",
        ),
    ],
)
def test_a_label_that_a_checkpoint_does_not_know_is_one_line(
    trained, names, message, tmp_path, capsys, backbone_folder
):
    pairs(tmp_path / "other", "validation", names)
    flags = [f"--model.backbone={backbone_folder('bert')}", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    flags += ["--data=GLUE", f"--data.path={tmp_path / 'other'}", f"--ckpt_path={trained[0]}"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["validate", "--model=SequenceClassification", "--model.method=LoRA", *flags])
    assert ended.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0])


def test_names_that_are_given_are_the_checkpoints_or_refused(trained, tmp_path, backbone_folder):
    task = SequenceClassification(backbone_folder("bert"), LoRA(), label_names=[SECOND, FIRST])
    data = GLUE("mrpc", str(trained[0].parent), batch_size=8)
    with pytest.raises(InputError, match="the adapter's classes are same, unlike, in this order"):
        run(tmp_path).validate(task, data, ckpt_path=trained[0], verbose=False)


def test_names_for_other_classes_are_refused(backbone_folder):
    task = SequenceClassification(backbone_folder("bert"), LoRA(), num_labels=3, label_names=["a", "b"])
    with pytest.raises(InputError, match="label_names: 2 names for 3 classes"):
        task.configure_model()


def test_numbers_of_a_known_task_are_its_names(tmp_path, backbone_folder, mrpc_folder):
    trainer = run(tmp_path, limit_train_batches=1)
    trainer.fit(fresh(backbone_folder), GLUE("mrpc", mrpc_folder, batch_size=8))
    trainer.save_checkpoint(tmp_path / "numbers.ckpt")
    assert load(tmp_path / "numbers.ckpt").model.config.id2label == {0: "not_equivalent", 1: "equivalent"}
    pairs(tmp_path / "other", "validation", ("equivalent", "not_equivalent"))
    data = GLUE("mrpc", str(tmp_path / "other"), batch_size=8)
    run(tmp_path).validate(fresh(backbone_folder), data, ckpt_path=tmp_path / "numbers.ckpt", verbose=False)
    assert data.splits["val"]["labels"][:3] == [1, 0, 0]


def test_names_without_a_training_split_or_a_checkpoint_are_refused(tmp_path, backbone_folder):
    pairs(tmp_path / "other", "validation")
    with pytest.raises(InputError, match=r"validation.csv: its labels are names, which the training split numbers"):
        run(tmp_path).validate(fresh(backbone_folder), GLUE("mrpc", str(tmp_path / "other")), verbose=False)
