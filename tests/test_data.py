import json

import pytest
import torch
from lit_spectral.datamodules import GLUE, MaskedText, PythonDocs
from lit_spectral.datamodules.glue import TASKS
from lit_spectral.datamodules.python_docs import AREAS

from lit_spectral.errors import InputError
from lit_spectral.python_text import sentences


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
    with pytest.raises(InputError, match=rf"train.jsonl, line 2: label {label}.* outside 0 to .*; mend"):
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
    with pytest.raises(InputError, match=r"train.jsonl, line 2: sentence2 is None, not text; mend"):
        glue(tmp_path, backbone_folder)


def test_words_that_look_missing_stay_words_in_csv(tmp_path):
    write(tmp_path, "train", [GOOD | {"sentence1": word} for word in ("None", "null", "n/a")], "csv")
    assert list(GLUE("mrpc", str(tmp_path)).rows("train")["sentence1"]) == ["None", "null", "n/a"]


def test_a_label_between_classes_is_refused(tmp_path, backbone_folder):
    write(tmp_path, "train", [GOOD | {"label": 1.0}, GOOD | {"label": 0.5}])
    with pytest.raises(InputError, match=r"line 2: label 0\.5 is no class, .*; mend"):
        glue(tmp_path, backbone_folder)


def test_a_home_that_can_not_be_written_is_not_taken_for_a_broken_file(tmp_path, monkeypatch):
    write(tmp_path, "train", [GOOD])
    (tmp_path / "home").touch()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    with pytest.raises(InputError, match=r"datasets can't keep what it reads in .*home/datasets .* set HF_HOME"):
        GLUE("mrpc", str(tmp_path)).rows("train")


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
    rows = [data.splits["train"][i] for i in range(4)]
    epochs = []
    for epoch in (0, 1, 0):
        data._epoch.fill_(epoch)
        epochs.append(data.collate_training([dict(r) for r in rows])["labels"])
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])


@pytest.mark.parametrize(("content", "message"), [(b"\xff\xfe\xff", "not UTF-8"), (b"one line", "fewer than two")])
def test_text_that_can_not_be_used_is_refused(tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        MaskedText(str(tmp_path / "text.txt"))._lines()


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path, backbone_folder):
    (tmp_path / "text.txt").write_text("the cat sat\nthe dog ran\n")
    data = MaskedText(str(tmp_path / "text.txt"), validation_fraction=1, tokenizer=backbone_folder("bert"))
    data.tokenizer.mask_token = None
    data.setup("validate")
    with pytest.raises(InputError, match="no mask token"):
        next(iter(data.val_dataloader()[0]))
