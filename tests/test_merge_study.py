"""`lit-spectral merge-study`: which merges, what becomes of the scores, and that nothing is measured twice."""

import csv
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from conftest import WORDS

from lit_spectral import cli
from lit_spectral.comparison import fitting
from lit_spectral.comparison.results import write_rows
from lit_spectral.errors import InputError
from lit_spectral.studies.bench import Bench
from lit_spectral.studies.command import run

CALLBACKS = [
    {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss", "mode": "min", "filename": "best"}},
    {"class_path": "ModelCheckpoint", "init_args": {"filename": "last", "enable_version_counter": False}},
]
TRAINER = {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
METHOD = {"class_path": "LoRA", "init_args": {"rank": 2}}
ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}}


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory, backbone_folder, mrpc_folder):
    """A folder of finished comparisons: of pairs with two seeds, and of masked words with one."""
    folder = tmp_path_factory.mktemp("comparisons")
    (folder / "lines.txt").write_text(
        "".join(f"{' '.join(random.Random(n).choices(WORDS, k=8))}\n" for n in range(60)), encoding="utf-8"
    )
    pairs = {"class_path": "GLUE", "init_args": {"task": "mrpc", "path": mrpc_folder, "batch_size": 8}}
    lines = {"path": str(folder / "lines.txt"), "batch_size": 8, "validation_fraction": 0.4}
    tasks = {"pairs": ("SequenceClassification", pairs, "0 1")}
    tasks["words"] = ("MaskedLM", {"class_path": "MaskedText", "init_args": lines}, "0")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(fitting, "call", lambda command: cli.run(command) and 0)
        for name, (task, data, seeds) in tasks.items():
            model = {"backbone": backbone_folder("bert"), "method": METHOD, "optimizer": ADAMW}
            content = {"trainer": TRAINER | {"callbacks": CALLBACKS}, "data": data}
            content["model"] = {"class_path": task, "init_args": model}
            Path(f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
            which = f"--methods LoRA HiRA --seeds {seeds} --unmatched"
            cli.main(["compare", f"--config={name}.yaml", *which.split()])
    return folder / "runs" / "compare"


def do(comparisons, *flags, tasks=("pairs", "words")):
    """The verb, on tasks by name of their comparison; returns the rows of merges.csv."""
    run([*(f"{task.partition('=')[0]}={comparisons / task.rpartition('=')[2]}" for task in tasks), *flags])
    with open(HERE / "merges.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


HERE = Path("runs/merge-study")
RULES = ("--rules", "add", "ties")


@pytest.fixture(scope="module")
def finished(comparisons, tmp_path_factory):
    """The folder of a finished study of all that there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        do(comparisons, *RULES)
        return HERE.absolute()


@pytest.fixture
def study(comparisons, tmp_path, monkeypatch):
    """`do`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return partial(do, comparisons)


@pytest.fixture
def done(study, finished):
    """The same, where all is measured."""
    shutil.copytree(finished, HERE)
    return study


@pytest.fixture
def copy_of(comparisons, tmp_path):
    """A comparison's copy, to be changed."""
    return lambda task: shutil.copytree(comparisons / task, tmp_path / f"copy_of_{task}")


def lines():
    return (HERE / "measured.jsonl").read_text(encoding="utf-8").splitlines()


def test_all_merges_of_every_method_are_measured_and_shown(done, capsys):
    assert len(lines()) == 2 * 3 + 2 * 2 * 2  # each adapter alone, and every merge
    rows = done(*RULES)
    assert [(row["method"], row["rule"], row["merge"], row["task"]) for row in rows] == [
        (method, rule, f"pairs_{seed}+words_0", task)
        for method in ("LoRA", "HiRA")
        for rule in ("add", "ties")
        for seed in (0, 1)
        for task in ("pairs", "words")
    ]
    changed = [float(row["change"]) for row in rows]
    assert any(changed)
    assert changed == pytest.approx([float(row["after"]) - float(row["before"]) for row in rows])
    html = (HERE / "index.html").read_text(encoding="utf-8")
    assert "Merged by ties" in html
    assert not [part for part in ('src="', "<link", "@import", 'href="http', "url(http") if part in html]
    assert "MergeFail" in capsys.readouterr().out
    with open(HERE / "table.csv", encoding="utf-8") as file:
        first, second, *_ = csv.DictReader(file)
    mine = [abs(float(row["change"])) for row in rows if (row["rule"], row["method"]) == ("add", "HiRA")]
    assert float(second["mean |change|"]) == pytest.approx(sum(mine) / 4)
    difference = float(second["mean |change|"]) - float(first["mean |change|"])
    assert float(second["mean |change| difference mean"]) == pytest.approx(difference)


def test_an_adapter_averaged_with_itself_is_itself(study, comparisons):
    for row in study("--weight", "mean", tasks=("a=words", "b=words")):
        assert float(row["after"]) == pytest.approx(float(row["before"]), rel=1e-6)


def test_what_was_measured_is_not_measured_again(done, monkeypatch):
    monkeypatch.setattr(Bench, "_measured", None)  # which would be called
    written = lines()
    assert len(done(*RULES, "--tau", "0.5")) == 16
    assert lines() == written


@pytest.mark.slow
def test_a_study_that_was_broken_off_goes_on(study, finished, monkeypatch):
    measured, left = Bench._measured, [5]

    def breaks(self, *args):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return measured(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "_measured", breaks)
        with pytest.raises(KeyboardInterrupt):
            study("--methods", "LoRA")
    whole = (finished / "measured.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines() == whole[:3]  # two adapters and their merge; the fifth measurement was to be of the third
    study("--methods", "LoRA")
    assert sorted(lines()) == sorted(line for line in whole if '"LoRA"' in line and '"ties"' not in line)


@pytest.mark.slow
def test_another_checkpoint_is_measured_anew(done, copy_of):
    count, words = len(lines()), copy_of("words")
    shutil.copy(words / "HiRA/seed_0/checkpoints/last.ckpt", words / "LoRA/seed_0/checkpoints/last.ckpt")
    done("--methods", "LoRA", tasks=("pairs", f"words={words}"))
    assert len(lines()) == count + 2  # merged with either seed; it alone was measured as another's


@pytest.mark.slow
def test_merges_are_written_only_where_that_is_asked_for_and_are_what_was_measured(done, comparisons, tmp_path):
    rows = done("--methods", "LoRA", "--samples", "1")
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {
        ".html",
        ".jsonl",
        ".lock",
        ".csv",
        ".png",
    }
    done("--methods", "LoRA", "--samples", "1", "--keep", "kept")
    for row in rows:
        place = f"kept/add_1/LoRA/{row['merge']}/{row['task']}"
        seed = row["merge"][len("pairs_")] if row["task"] == "pairs" else "0"
        config = comparisons / row["task"] / "LoRA" / f"seed_{seed}" / "config.yaml"
        quiet = ["--trainer.logger=false", "--trainer.callbacks=null", "--ckpt_path=null"]
        found = cli.run(["validate", f"--config={config}", f"--adapter={place}", *quiet]).trainer.callback_metrics
        assert float(found["val/loss"]) == pytest.approx(float(row["after"]), rel=1e-6)


@pytest.mark.slow
def test_a_merge_of_other_adapters_is_not_taken_for_one_of_these(done, copy_of):
    words = copy_of("words")
    how = {"tasks": ("pairs", f"words={words}")}
    flags = ["--methods", "LoRA", "--samples", "1", "--keep", "kept"]
    done(*flags, **how)
    shutil.copy(words / "HiRA/seed_0/checkpoints/last.ckpt", words / "LoRA/seed_0/checkpoints/last.ckpt")
    with pytest.raises(InputError, match="has a merge of other adapters, which were trained since; remove it"):
        done(*flags, **how)


@pytest.mark.parametrize(
    ("tasks", "flags", "said"),
    [
        (["pairs"], [], "1 task is given, and a merge is of two at least"),
        (["pairs", "pairs"], [], "pairs is given twice"),
        (["pairs", "=words"], [], "is no NAME=FOLDER"),
        (["pairs", "words=nowhere"], [], "nowhere has no finished run"),
        (["pairs", "words"], ["--rules", "tie"], "there is no rule tie; did you mean ties?"),
        (["pairs", "words"], ["--tau", "0"], "above 0 and at most 1, not 0"),
        (["pairs", "words"], ["--tau", "0.9", "1.5"], "above 0 and at most 1, not 1.5"),
        (["pairs", "words"], ["--tau", "nan"], "above 0 and at most 1, not nan"),
        (["pairs", "words"], ["--weight", "0"], "--weight is mean, or a finite number other than 0"),
        (["pairs", "words"], ["--sizes", "3"], "merges are of 2 to 2 of the tasks, not of 3"),
        (["pairs", "words"], ["--samples", "0"], "samples must be at least 1"),
        (["pairs", "words"], ["--methods", "LoRa"], "pairs has no finished run of LoRa; did you mean LoRA?"),
        (["pairs", "words"], ["--metric", "words=val/f1"], "logged no val/f1; give --metric words=NAME, of val/acc"),
        (["pairs", "words"], ["--metric", "words=train/loss"], "logged no train/loss; give --metric words=NAME"),
        (["pairs", "words"], ["--metric", "word=val/f1"], "there is no task word; did you mean words?"),
    ],
)
def test_what_cannot_be_used_is_one_line(study, tasks, flags, said):
    with pytest.raises(InputError) as told:
        study(*flags, tasks=tasks)
    assert said in str(told.value)
    assert not (HERE / "measured.jsonl").exists()


def alter(checkpoint, digest):
    """Have a checkpoint say another backbone's digest; an empty one where nobody has looked."""
    content = torch.load(checkpoint, weights_only=True)
    content["lit_spectral"]["backbone_digest"] = digest
    torch.save(content, checkpoint)


def test_an_adapter_of_another_backbone_is_refused(done, copy_of):
    pairs = copy_of("pairs")
    alter(pairs / "LoRA/seed_1/checkpoints/last.ckpt", "another-backbone")
    before = lines()
    with pytest.raises(InputError, match="pairs: LoRA, seed 0 and pairs: LoRA, seed 1 are adapters of different"):
        done("--methods", "LoRA", tasks=(f"pairs={pairs}", "words"))
    assert lines() == before


def test_another_backbone_is_known_by_its_weights_too_and_what_was_measured_is_kept(study, copy_of, tmp_path):
    words, other = copy_of("words"), tmp_path / "other"
    config = yaml.safe_load((words / "LoRA/seed_0/config.yaml").read_text(encoding="utf-8"))
    shutil.copytree(config["model"]["init_args"]["backbone"], other)
    torch.manual_seed(1)
    transformers.BertForMaskedLM(transformers.AutoConfig.from_pretrained(other)).save_pretrained(other)
    config["model"]["init_args"]["backbone"] = str(other)
    (words / "LoRA/seed_0/config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    alter(words / "LoRA/seed_0/checkpoints/last.ckpt", "")
    with pytest.raises(InputError, match="pairs and words are of different backbones, which encoder"):
        study("--methods", "LoRA", tasks=("pairs", f"words={words}"))
    assert len(lines()) == 1


def without(table, left_out):
    """Take lines, or what is in columns, out of a comparison's table of runs."""
    with open(table, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if left_out not in (row["method"], row["seed"])]
    for row in rows:
        row |= {name: "" for name in row if name.startswith(left_out)}
    write_rows(table, list(rows[0]), rows)


def test_a_task_without_a_metric_is_refused(study, copy_of):
    words = copy_of("words")
    without(words / "runs.csv", "metrics/val/")
    with pytest.raises(InputError, match="words: LoRA, seed 0 logged no val/loss; have it validate"):
        study(tasks=("pairs", f"words={words}"))


@pytest.mark.parametrize("line", ["{", "[]", '{"adapters": {}, "how": {}, "logged": {"a": {}}}'])
def test_a_damaged_line_is_named(study, line):
    HERE.mkdir(parents=True)
    (HERE / "measured.jsonl").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1 is nothing that merge-study has measured"):
        study()


def test_methods_and_seeds_that_a_task_lacks_are_left_out(done, copy_of, caplog):
    words, pairs = copy_of("words"), copy_of("pairs")
    without(words / "runs.csv", "HiRA")
    assert {row["method"] for row in done(tasks=("pairs", f"words={words}"))} == {"LoRA"}
    assert "left out, since not every task has finished runs: HiRA" in caplog.text
    shutil.rmtree(pairs / "HiRA/seed_1")
    assert {row["merge"] for row in done(tasks=(f"pairs={pairs}", "words"))} == {"pairs_0+words_0"}
    assert "pairs: HiRA, seed 1 is left out" in caplog.text
    assert "pairs: left out, since not every method has finished: seeds 1" in caplog.text
