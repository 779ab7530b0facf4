"""lm-evaluation-harness on adapted decoders: equal to its own class on folded weights, and no trace in training."""

import json
import os
import subprocess

import pytest
import torch
from harness_tasks import KINDS, checkpoint, data, quick, train, write  # noqa: F401 (fixtures)

from lit_spectral.adapters import detach, fold
from lit_spectral.checkpoint import load
from lit_spectral.evaluation.command import run
from lit_spectral.evaluation.harness import Tasks, evaluate, figures
from lit_spectral.methods import FCLoRA, LoRA


def reference(checkpoint, data, folder):
    """The harness's own results on the folded model, loaded by its own class from files."""
    from lm_eval.models.huggingface import HFLM

    from lit_spectral import backbones

    task = load(checkpoint)
    fold(task.model)
    detach(task.model)
    task.model.save_pretrained(folder)
    backbones.load_tokenizer(task.backbone).save_pretrained(folder)
    model = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    return evaluate(model, Tasks(KINDS, str(data)), bootstrap_iters=0)


def samples(path):
    """Responses of every kind of task from the file that `--log_samples` leaves, in the order of the rows."""
    found = {name: [] for name in KINDS}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found[row["task"]].append((row["doc_id"], row["filtered_resps"]))
    return {name: [response for _, response in sorted(rows, key=lambda r: r[0])] for name, rows in found.items()}


def likelihoods(rows):
    """Log-likelihoods of all responses; those of choices come beside whether the choice is the likeliest."""
    return [float(r[0] if isinstance(r, (list, tuple)) else r) for responses in rows for r in responses]


@pytest.mark.parametrize(("method", "flags"), [(LoRA(rank=2), []), (FCLoRA(rank=2), ["--fold"])])
def test_evaluate_agrees_with_the_harness_on_the_folded_model(checkpoint, data, tmp_path, method, flags):
    path = checkpoint(method)
    expected = reference(path, data, tmp_path / "folded")
    out = tmp_path / "results.json"
    place = ["--include_path", str(data), "--output_path", str(out)]
    run(["--checkpoint", path, "--tasks", ",".join(KINDS), "--batch_size", "4", "--log_samples", *place, *flags])
    found = figures(json.loads(out.read_text()))
    assert found == pytest.approx(figures(expected), rel=1e-4)
    assert found["tiny_choice/acc"] == figures(expected)["tiny_choice/acc"]
    for name, ours in samples(tmp_path / "results.samples.jsonl").items():
        theirs = [row["filtered_resps"] for row in sorted(expected["samples"][name], key=lambda row: row["doc_id"])]
        if name == "tiny_generation":
            assert ours == theirs
        else:
            assert likelihoods(ours) == pytest.approx(likelihoods(theirs), rel=1e-4)


def test_a_checkpoint_scores_otherwise_than_its_backbone(checkpoint, data, decoder_folder, tmp_path):
    flags = ["--tasks", "tiny_text", "--include_path", str(data), "--output_path"]
    adapted = run(["--checkpoint", checkpoint(), *flags, str(tmp_path / "adapted.json")])
    base = run(["--backbone", decoder_folder(), *flags, str(tmp_path / "base.json")])
    first, second = (json.loads(file.read_text())["results"]["tiny_text"] for file in (adapted, base))
    assert first["word_perplexity,none"] != second["word_perplexity,none"]


@pytest.fixture
def evaluated(checkpoint, data):
    """The log folder of a run whose checkpoint was evaluated, and the JSON that this left."""
    path = checkpoint()
    file = run(["--checkpoint", path, "--tasks", "tiny_choice", "--include_path", str(data), "--seed", "7"])
    return os.path.dirname(os.path.dirname(path)), file


def test_results_lie_in_the_log_folder(evaluated):
    assert str(evaluated[1].parent) == os.path.join(evaluated[0], "lm_eval")


def test_results_carry_what_they_depend_on(evaluated):
    config = json.loads(evaluated[1].read_text())["config"]
    about = config["lit_spectral"]
    assert about["method"]["name"] == "LoRA"
    assert about["step"] == 8
    assert [config[f"{name}_seed"] for name in ("random", "numpy", "torch", "fewshot")] == [7] * 4
    assert about["versions"]["torch"] == torch.__version__
    assert "git" in about


def test_git_says_nothing_of_a_folder_that_is_no_repository(tmp_path, monkeypatch, capfd, request):
    monkeypatch.chdir(tmp_path)
    request.getfixturevalue("evaluated")
    assert "fatal" not in capfd.readouterr().err


def test_results_go_to_tensorboard(evaluated):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(evaluated[1].parent)).Reload()
    (point,) = events.Scalars("lm_eval/tiny_choice/acc")
    assert point.step == 8
    assert point.value == pytest.approx(json.loads(evaluated[1].read_text())["results"]["tiny_choice"]["acc,none"])


def test_the_build_of_torch_is_named_though_its_package_is_not_called_by_it(monkeypatch):
    from lit_spectral.evaluation.provenance import provenance

    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    assert provenance()["versions"]["torch"] == "2.13.0+cu130"


def test_git_state_is_that_of_the_current_folder(tmp_path, monkeypatch):
    from lit_spectral.evaluation.provenance import provenance

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git"] is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for args in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *args], check=True)
    assert provenance()["git"]["dirty"] is False
    (tmp_path / "new").touch()
    assert provenance()["git"]["dirty"] is True
