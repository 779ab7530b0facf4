"""`lit-spectral edit`: what is trained, what is measured of it, and what is not done again."""

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import WORDS

from lit_spectral import cli
from lit_spectral.checkpoint import load
from lit_spectral.comparison import fitting
from lit_spectral.editing import making
from lit_spectral.editing.bench import Bench
from lit_spectral.errors import InputError
from lit_spectral.retention import Retention

QUIET = [f"--trainer.{name}=false" for name in ("enable_progress_bar", "enable_model_summary")]
QUIET += ["--trainer.accelerator=cpu", "--trainer.max_steps=3", "--trainer.val_check_interval=3"]
SMALL = ["--data.batch_size=4", "--model.method.rank=2", "--model.optimizer.lr=0.05", "--model.warmup_steps=0"]
FOLDER = Path("runs/edit/edit_own")
EDITS = [
    {"prompt": f"the {who} sat on the", "old": "mat", "new": "hill", "category": kind}
    for who, kind in zip(WORDS[1:6], ("cats", "cats", "dogs", "dogs", "dogs"), strict=True)
]
UNRELATED = [{"prompt": f"the bird {did}", "answer": "under"} for did in WORDS[4:8]]
UNRELATED += [{"prompt": "then", "answer": ""}]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(name):
    with open(FOLDER / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def study(backbone, *flags, fit=fitting.fit):
    """The verb by the shipped config on `edits`, three at once, in this process: what it ended with, said and ran."""
    ran, said = [], io.StringIO()

    def inside(command):
        ran.append(command[0])
        try:
            cli.run(command)
        except (RuntimeError, InputError):
            return 1
        return 0

    given = ["--config=configs/edit_own.yaml", f"--model.backbone={backbone}", "--methods=LoRA", "--seeds=0"]
    status = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.setattr(fitting, "call", inside)
        patch.setattr(fitting, "fit", fit)
        try:
            cli.main(["edit", *given, "--at_once=3", *QUIET, *SMALL, *flags])
        except SystemExit as stop:
            status = stop.code
    return SimpleNamespace(status=status, said=said.getvalue(), ran=ran)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, decoder_folder):
    """A study whose second run failed at first, and what was there then."""
    original = fitting.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("edit"))
        patch.setenv("COLUMNS", "120")
        Path("edits").mkdir()
        Path("edits/train.jsonl").write_text(lines(EDITS), encoding="utf-8")
        Path("edits/unrelated.jsonl").write_text(lines(UNRELATED), encoding="utf-8")
        first = study(
            decoder_folder(),
            fit=lambda planned, *args: 1 if planned.folder.match("batch_1") else original(planned, *args),
        )
        by_then = table("edits.csv")
        return SimpleNamespace(first=first, by_then=by_then, then=study(decoder_folder()), folder=Path.cwd())


@pytest.fixture
def done(finished, tmp_path, monkeypatch):
    """The same, in a folder of its own."""
    shutil.copytree(finished.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return finished


def test_a_run_that_fails_is_one_line_and_others_are_shown(done):
    assert (done.first.status, done.first.ran) == (1, ["fit"])
    assert "failed: 2 of 2: LoRA, seed 0, edits 4 to 5; the same command" in done.first.said.replace("\n", " ")
    assert [row["edit"] for row in done.by_then] == ["0", "1", "2"]


def test_the_same_command_goes_on_and_then_repeats_nothing(done, decoder_folder):
    assert (done.then.status, done.then.ran) == (0, ["fit"])
    answers = sorted(Path().rglob("answers.json")) + sorted(Path().rglob("backbone_*.json"))
    assert len(answers) == 3
    before = [file.stat().st_mtime_ns for file in answers]
    again = study(decoder_folder())
    assert (again.status, again.ran) == (0, [])
    assert [file.stat().st_mtime_ns for file in answers] == before


def test_what_is_written_is_what_the_models_hold_by_transformers_alone(done, decoder_folder):
    row = table("edits.csv")[4]
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder_folder())
    given = tokenizer(EDITS[4]["prompt"])["input_ids"]
    said = tokenizer(" hill", add_special_tokens=False)["input_ids"]
    models = {
        " before": transformers.AutoModelForCausalLM.from_pretrained(decoder_folder()),
        "": load(FOLDER / "LoRA/seed_0/batch_1/checkpoints/last.ckpt").model,
    }
    for suffix, model in models.items():
        with torch.no_grad():
            held = model(torch.tensor([[*given, *said]])).logits.log_softmax(-1)[0, len(given) - 1 : -1]
        expected = float(held[torch.arange(len(said)), said].sum())
        assert float(row[f"log p(new){suffix}"]) == pytest.approx(expected, abs=1e-4)


def test_a_page_and_tables_are_written_and_unanswered_prompts_have_the_backbones_answer(done):
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not [part for part in ('src="', "<link", "@import", 'href="http', "url(http") if part in html]
    assert "success, cats" in html
    assert "edit success" in done.then.said
    unrelated = table("unrelated.csv")
    assert len(unrelated) == 2 * len(UNRELATED)
    assert unrelated[4]["answer"]
    assert unrelated[4]["text before"].lstrip("\n").startswith(unrelated[4]["answer"])


def test_what_is_kept_is_measured_before_and_after_and_not_at_every_epoch(done, long_decoder, monkeypatch):
    Path("text.txt").write_text("the cat sat on the mat\n" * 200, encoding="utf-8")
    original, measured = Retention.measure, []
    monkeypatch.setattr(Retention, "measure", lambda *args: measured.append(1) or original(*args))
    # A step is an epoch here, and three are made.
    flags = ["--edits=3", "--corpora", "text.txt", "--limit=2", "--output_folder=kept"]
    assert study(long_decoder, *flags).status == 0
    assert len(measured) == 2
    with open("kept/table.csv", encoding="utf-8", newline="") as file:
        assert "retention/text/forgetting_loss" in next(csv.reader(file))


def test_other_edits_are_not_mixed_with_what_was_done(done, decoder_folder):
    Path("edits/train.jsonl").write_text(lines(EDITS[::-1]), encoding="utf-8")
    refused = study(decoder_folder())
    assert refused.status == 2
    assert "batch_0 has a run of other settings" in refused.said


def test_answers_that_are_damaged_are_one_line_and_the_rest_is_shown(done, decoder_folder):
    (FOLDER / "LoRA/seed_0/batch_1/answers.json").write_text("{", encoding="utf-8")
    found = study(decoder_folder())
    assert (found.status, found.ran) == (1, [])
    assert "answers.json is damaged; remove it" in found.said.replace("\n", " ")
    assert len(table("edits.csv")) == 3


def test_interrupted_while_it_measures_it_shows_what_is_measured(done, decoder_folder, monkeypatch):
    original = Bench.measure

    def measure(self, planned, *args):
        if planned.folder.match("batch_1"):
            raise KeyboardInterrupt
        return original(self, planned, *args)

    monkeypatch.setattr(Bench, "measure", measure)
    (FOLDER / "index.html").unlink()
    assert study(decoder_folder()).status == 130
    assert (FOLDER / "index.html").exists()
    assert [row["edit"] for row in table("edits.csv")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/edit_own.yaml", "--at_once", "0"], "at_once must be at least 1, not 0"),
        (["--config=configs/edit_own.yaml", "--unrelated", "-1"], "unrelated must be at least 0"),
        (["--config=configs/edit_own.yaml", "--edits", "3"], "edits has 2 that are used; give less"),
        (["--config=configs/edit_own.yaml", "--data.first", "1"], "data.first and data.count are not for the runs"),
        (["--config=configs/edit_own.yaml", "--data.categories", "[dog]"], "no category dog; did you mean dogs?"),
        (["--config=configs/edit_own.yaml", "--data.new", "{neu}"], "no column neu; its columns are"),
        (["--config=configs/own_instructions.yaml"], "the data of configs/own_instructions.yaml are PromptedText"),
        ([], "--config is missing; give one whose data are Edits"),
        (["--config=configs/edit_own.yaml", "--backbone", "x"], "--backbone is for --make; leave it out"),
        (["--make", "made"], "--make is of what a backbone knows; give --backbone too"),
        (["--make", "made", "--backbone", "x", "--seeds", "0"], "--make does not take --seeds; train by a command"),
        (["--make", "made", "--backbone", "x", "--confidence", "0"], "--confidence is a probability"),
        (["--make", "edits", "--backbone", "x"], "train.jsonl is there already; remove it"),
        (["--make", "made", "--backbone", "nowhere"], "nowhere"),
    ],
)
def test_what_can_not_be_is_one_line_before_anything_runs(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("edits").mkdir()
    Path("edits/train.jsonl").write_text(lines(EDITS[2:4]), encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["edit", *flags])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert message in said
    assert not list(Path().rglob("command.json"))
    assert not list(Path().rglob("made/*"))


def test_a_set_is_made_of_what_a_backbone_knows_and_read_again(decoder_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = [
        making.Fact(0, f"the {who} sat on the", where, "cats")
        for who, where in zip(WORDS[1:7], WORDS[10:16], strict=True)
    ]
    monkeypatch.setattr(making, "known_facts", lambda backbone, confidence: known)
    cli.main(["edit", "--make", "edits", "--backbone", decoder_folder(), "--edits", "3"])
    data = making.Edits("edits")
    assert len(data.edits()) == len(data.probes(3, 500)) == 3


def test_a_backbone_that_is_sure_of_nothing_is_told_so(decoder_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="sure of 0 facts"):
        making.make(decoder_folder(), Path("made"), 3, 0.99)
