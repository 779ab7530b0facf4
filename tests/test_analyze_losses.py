"""`analyze` by losses and `forgetting-study`, on adapters that comparisons trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import WORDS
from test_analysis_effects import rows
from test_merge_study import ADAMW, CALLBACKS, METHOD, TRAINER
from test_prompted_text import QUESTIONS
from transformers import AutoModel, AutoTokenizer

from lit_spectral import cli
from lit_spectral.analysis import correlation
from lit_spectral.analysis import readings as read_by
from lit_spectral.analysis.command import parse
from lit_spectral.analysis.command import run as analyze
from lit_spectral.analysis.effects import Distance, Effect
from lit_spectral.analysis.measuring import Changed
from lit_spectral.comparison import fitting
from lit_spectral.errors import InputError
from lit_spectral.studies.finished import Adapter
from lit_spectral.studies.forgetting import MEASURES, Point, Predictors, lost, measures_of
from lit_spectral.studies.forgetting_command import _OwnRows, run
from lit_spectral.updates.sources import read


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory, decoder_folder, mrpc_folder):
    """Comparisons on one decoder: of answers, with what four runs retain of a text, and of pairs, with one run."""
    folder = tmp_path_factory.mktemp("comparisons")
    (folder / "words.txt").write_text(f"{' '.join(WORDS)}\n" * 60, encoding="utf-8")
    backbone = folder / "decoder"
    shutil.copytree(decoder_folder(), backbone)
    tokenizer = AutoTokenizer.from_pretrained(backbone, model_max_length=512)  # a monitor's windows are of 256
    tokenizer.save_pretrained(backbone)
    (folder / "answers").mkdir()
    for split, kept in (("train", QUESTIONS[:16]), ("validation", QUESTIONS[16:])):
        lines = (json.dumps(row) + "\n" for row in kept)
        (folder / "answers" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    asked = {"path": str(folder / "answers"), "prompt": "{q} {n}\n", "answer": "{a}", "batch_size": 4, "max_length": 48}
    pairs = {"task": "mrpc", "path": mrpc_folder, "batch_size": 8, "max_length": 48}
    retained = f"--seeds 0 1 --corpora words={folder / 'words.txt'} --limit 4"
    tasks = {"answers": ("CausalLM", {"class_path": "PromptedText", "init_args": asked}, f"LoRA HiRA {retained}")}
    tasks["pairs"] = ("SequenceClassification", {"class_path": "GLUE", "init_args": pairs}, "LoRA --seeds 0")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(fitting, "call", lambda command: cli.run(command) and 0)
        for name, (task, data, which) in tasks.items():
            model = {"backbone": str(backbone), "method": METHOD, "optimizer": ADAMW}
            content = {"trainer": TRAINER | {"callbacks": CALLBACKS}, "data": data}
            content["model"] = {"class_path": task, "init_args": model}
            Path(f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
            cli.main(["compare", f"--config={name}.yaml", "--unmatched", "--methods", *which.split()])
    return folder


@pytest.fixture
def runs(comparisons, tmp_path, monkeypatch):
    """From a run's name to its folder, in a current folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    folders = {"answers": "answers/LoRA/seed_0", "others": "answers/HiRA/seed_1", "pairs": "pairs/LoRA/seed_0"}
    return {name: comparisons / "runs" / "compare" / folder for name, folder in folders.items()}


def recorded(folder):
    return json.loads((folder / "record.json").read_text())["metrics"]


def test_adapters_meet_every_runs_task_and_texts_and_tasks_are_compared(runs, comparisons, capsys):
    """The diagonal is what the runs themselves logged; another ΔW, or none, is another figure."""
    flags = ["--rank=2", "--top=4", "--limit=3", "--max_length=16", "--output_folder=out"]
    flags += [f"--corpora=words={comparisons / 'words.txt'}", "--fisher=2", "--interventions=3"]
    tasks = ["--tasks", *(f"{name}={runs[name]}" for name in ("answers", "pairs"))]
    sources = [str(runs[name] / "checkpoints" / "last.ckpt") for name in ("answers", "pairs")]
    page = analyze([*sources, *flags, *tasks])
    labels = list(dict.fromkeys(row["source"] for row in rows("out/changes.csv")))
    found = {(row["source"], row["task"], row["metric"]): float(row["value"]) for row in rows("out/transfer.csv")}
    for label, name, metric in zip(labels, ("answers", "pairs"), ("val/loss", "val/accuracy"), strict=True):
        assert found[label, name, metric] == pytest.approx(recorded(runs[name])[metric], rel=1e-6)
    losses = [found[source, "answers", "val/loss"] for source in ("none: the backbone", *labels)]
    assert len(set(losses)) == 3
    overlaps = rows("out/fisher.csv")
    pairs = [("answers", "answers"), ("answers", "pairs"), ("answers", "words"), ("pairs", "pairs")]
    pairs += [("pairs", "words"), ("words", "words")]
    assert {(row["one"], row["other"]) for row in overlaps} == set(pairs)
    assert len(overlaps) == len(pairs) * 2 * len(read(sources[0]).changes)
    assert all(0 <= float(row["overlap"]) <= 1 + 1e-12 for row in overlaps)
    done = rows("out/interventions.csv")
    assert [row["on"] for row in done] == [name for name in ("answers", "pairs", "words") for _ in range(9)]
    assert any(abs(float(row["change"])) > 1e-6 for row in done)
    html = page.read_text(encoding="utf-8")
    for heading in ("Each adapter on each task", "that tasks share", "that the backbone needs"):
        assert heading in html
    assert "transfer.csv, fisher.csv, interventions.csv" in capsys.readouterr().out.replace("\n", " ")


def test_a_runs_rows_are_those_of_its_validation_set_and_its_loss_is_the_tasks(runs):
    reading = read_by.RunReading("answers", runs["answers"], None, torch.device("cpu"))
    assert reading.mean_loss(reading.batches(1)) == pytest.approx(recorded(runs["answers"])["val/loss"], rel=1e-5)
    assert reading.mean_loss(reading.batches(3)) == pytest.approx(recorded(runs["answers"])["val/loss"], rel=1e-5)
    few = read_by.RunReading("answers", runs["answers"], None, torch.device("cpu"), 2)
    assert [len(batch["input_ids"]) for batch in few.batches(1)] == [1, 1]
    assert few.metric == "val/loss"


def test_of_a_decoders_rows_prompts_are_looked_at(runs):
    reading = read_by.RunReading("answers", runs["answers"], None, torch.device("cpu"), 1)
    (row,) = reading.batches(1)
    (batch,) = _OwnRows(reading.task, [row]).batches(reading.task, reading.task.backbone)
    prompt = int((row["labels"] == -100).sum())
    assert batch.scored[0].tolist() == [place < prompt - 1 for place in range(row["labels"].shape[1])]
    assert torch.equal(batch.wanted[batch.scored], row["input_ids"][0, 1:prompt])


@pytest.mark.parametrize(("flags", "said"), [
    (["--fisher=2", "--corpora=FILE"], "--fisher compares two tasks, and 1 is given"),
    (["--fisher=0"], "fisher must be at least 1, not 0"),
    (["--interventions=3"], "--interventions measures a loss; give --corpora or --tasks too"),
    (["--interventions=2", "--corpora=FILE"], "interventions must be at least 3"),
    (["--noise=-1"], "noise must be at least 0"),
    (["--tasks=x"], "--tasks: 'x' lacks a name or a folder; give NAME=RUN"),
    (["--tasks", "a=RUN", "a=c"], "--tasks: a is given twice"),
    (["--tasks=x=nowhere"], r"--tasks x: there is no nowhere/config\.yaml; give the folder of a run"),
    (["--tasks=words=RUN", "--corpora=words=FILE"], "a text and a task are both named words"),
])  # fmt: skip
def test_what_can_not_be_measured_is_one_line_before_anything_is(flags, said, runs, comparisons):
    for name, place in (("FILE", comparisons / "words.txt"), ("RUN", runs["answers"])):
        flags = [flag.replace(name, str(place)) for flag in flags]
    with pytest.raises(InputError, match=said):
        parse(["adapter", *flags])


def test_more_groups_than_components_are_refused_before_a_model_is_loaded(runs):
    flags = ["--rank=2", "--top=4", f"--tasks=x={runs['answers']}", f"--tasks=y={runs['pairs']}", "--fisher=99"]
    with pytest.raises(InputError, match="has 32 singular components, and 99 groups are asked for"):
        analyze([str(runs["answers"] / "checkpoints" / "last.ckpt"), *flags])
    assert not list(Path().rglob("*.csv"))


def test_an_encoder_without_a_masked_head_has_no_loss_on_a_text(comparisons, backbone_folder, tmp_path):
    from test_retention import build

    from lit_spectral.methods import LoRA
    from lit_spectral.tasks import SequenceClassification

    AutoModel.from_pretrained(backbone_folder("bert"), add_pooling_layer=True).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(backbone_folder("bert")).save_pretrained(tmp_path)
    task = build(SequenceClassification, str(tmp_path), LoRA(rank=2))
    with pytest.raises(InputError, match="no masked-language head, and no loss on texts; give --tasks"):
        read_by.TextReading("words", str(comparisons / "words.txt"), task, 2, 16)


def test_what_was_lost_is_how_much_worse_a_record_is_than_its_backbone():
    record = {"w/loss": 2.0, "w/base_loss": 1.0, "w/forgetting_loss": 3.5, "w/base_entropy": 3.0, "w/accuracy": 0.3,
              "w/base_accuracy": 0.5, "sts/drift": 0.1, "sts/spearman": 0.7, "sts/base_spearman": 0.8}  # fmt: skip
    expected = {"w/forgetting_loss": 0.5, "w/accuracy": 0.2, "sts/spearman": 0.1, "sts/drift": 0.1}
    assert lost(record) == pytest.approx(expected)
    assert list(lost(record)) == list(expected)


def test_an_adapters_measures_are_over_all_its_maps():
    each = [{"spectral": s, "energy": e, "rho_left": r, "rho_right": 0.0, "energy_in_top": r, "intruders_0.6": 2}
            for s, e, r in ((1.0, 3.0, 1.0), (2.0, 1.0, 0.2))]  # fmt: skip
    maps = [Changed(one, torch.ones(1), torch.ones(1)) for one in each]
    found = measures_of(maps, Effect({}, [Distance(0.5, 0.9), Distance(0.75, 0.3)], {}))
    expected = {"spectral": 2, "frobenius": 2, "rho_left": 0.8, "rho_right": 0, "energy_in_top": 0.8, "intruders": 4}
    assert found == pytest.approx(expected | {"cka": 0.25, "procrustes": 0.3, "kl": float("nan")}, nan_ok=True)
    assert found.keys() == MEASURES.keys()


def test_together_are_ranks_within_each_comparison():
    """Of one that falls and one that rises by the same ranks nothing is left, whatever their units."""
    points = [
        Point(Adapter(task, "LoRA", n, Path(), frozenset()), dict.fromkeys(MEASURES, factor * n), {kind: 5.0 - n})
        for task, factor, kind in (("a", 1.0, "x/drift"), ("b", -900.0, "y/accuracy"))
        for n in range(1, 7)
    ]
    study = Predictors(points)
    assert study.of("kl", "a", "x/drift").value == pytest.approx(-1)
    assert study.of("kl", "b", "y/accuracy").value == pytest.approx(1)
    assert study.together("kl").value == pytest.approx(0, abs=1e-12)
    assert study.headings() == ["measure", "a: x/drift", "b: y/accuracy", "all, by ranks within each"]


@pytest.mark.slow
def test_a_study_has_what_runs_recorded_beside_what_was_measured_and_measures_it_once(runs, monkeypatch, capsys):
    folder = runs["answers"].parents[1]
    page = run([f"answers={folder}", "--top=4", "--limit=4"])
    adapters = rows(page.parent / "adapters.csv")
    assert [(row["method"], row["seed"]) for row in adapters] == [(m, n) for m in ("HiRA", "LoRA") for n in "01"]
    for row in adapters:
        record = json.loads((folder / row["method"] / f"seed_{row['seed']}" / "record.json").read_text())
        kept = record["retention"]
        change = kept["words/forgetting_loss"] - kept["words/base_entropy"]
        assert float(row["lost/words/forgetting_loss"]) == pytest.approx(change)
        if row["method"] == "LoRA":  # of the other the monitor's is an estimate
            assert float(row["spectral"]) == pytest.approx(record["largest_norm"], rel=1e-3)
        assert float(row["kl"]) > 0
    table = {row["measure"]: row for row in rows(page.parent / "correlations.csv")}
    columns = [[float(row[name]) for row in adapters] for name in ("frobenius", "lost/words/forgetting_loss")]
    assert float(table["frobenius"]["value"]) == pytest.approx(correlation(*columns, ranks=True).value)
    assert "What goes with forgetting: answers" in page.read_text(encoding="utf-8")
    capsys.readouterr()
    monkeypatch.setattr("lit_spectral.studies.forgetting_command._measure", lambda *args: pytest.fail("again"))
    run([f"answers={folder}", "--top=4", "--limit=4"])
    assert "4 of 4: answers: LoRA, seed 1" in capsys.readouterr().out


def test_what_no_study_can_be_made_of_is_one_line(runs, tmp_path):
    folder = runs["answers"].parents[1]
    for given, said in (
        (
            [f"pairs={runs['pairs'].parents[1]}"],
            "has 0 finished runs with retention and a checkpoint, and 4 are",
        ),
        (["x=nowhere"], "x: nowhere has 0 finished runs"),
        ([str(folder)], "is no NAME=FOLDER"),
        ([f"a={folder}", f"a={folder}"], "a is given twice"),
        ([f"a={folder}", "--limit=0"], "limit must be at least 1"),
    ):
        with pytest.raises(InputError, match=said):
            run(given)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "LoRA" / "seed_1" / "record.json").write_text("[]")
    with pytest.raises(InputError, match=r"record\.json is no record of a run"):
        run([f"a={broken}"])
