"""`lit-spectral compare`: what is run, what is not run again, and what is made of it."""

import csv
import io
import json
import shutil
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml
from conftest import CONFIGS
from filelock import FileLock
from lit_spectral.callbacks import RunRecord

from lit_spectral import cli
from lit_spectral.comparison import command as comparing
from lit_spectral.comparison import fitting
from lit_spectral.verbs import VERBS


@pytest.fixture
def compare(backbone_folder, mrpc_folder, tmp_path, monkeypatch):
    """Run the verb with two methods on tiny models, in this process; returns the commands of `fit` that it ran."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((CONFIGS / "lora_roberta_mrpc.yaml").read_text())
    content["trainer"] |= {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1}
    content["trainer"] |= {"enable_progress_bar": False, "enable_model_summary": False}
    content["model"]["init_args"] |= {"backbone": backbone_folder("bert")}
    content["data"]["init_args"] |= {"path": mrpc_folder}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "text.txt").write_text("the cat sat on the mat\nthe dog ran over the hill\n" * 4)
    ran = []

    def inside(command):
        ran.append(command)
        try:
            cli.run(command) if command[0] == "fit" else VERBS[command[0]].run(command[1:])
        except RuntimeError:
            return 1
        return 0

    def run(*flags, methods=("LoRA", "FCLoRA"), seeds=("0",), process=False):
        with monkeypatch.context() as patch:
            if not process:
                patch.setattr(fitting, "call", inside)
            ran.clear()
            cli.main(["compare", "--config=tiny.yaml", "--methods", *methods, "--seeds", *seeds, *flags])
        return list(ran)

    return run


FOLDER = Path("runs/compare/tiny")


@pytest.fixture(scope="module")
def finished():
    """Copies of what comparisons left, by what was asked for."""
    return {}


@pytest.fixture
def done(compare, finished, tmp_path_factory):
    """Have what a comparison leaves in its folder: each is made once, and then copied."""

    def have(*flags, **how):
        asked = str((flags, how))
        if asked in finished:
            shutil.copytree(finished[asked], FOLDER)
        else:
            compare(*flags, **how)
            finished[asked] = shutil.copytree(FOLDER, tmp_path_factory.mktemp("finished") / "tiny")

    return have


def test_runs_are_made_once_and_the_tables_tell_all(compare):
    text = ["--corpora", "text.txt"]
    assert len(compare(*text)) == 2
    ran = compare(*text, seeds=("0", "1"))
    assert [[flag for flag in command if "seed" in flag][:2] for command in ran] == [
        ["--seed_everything=1", "--data.seed=1"]
    ] * 2
    with open(FOLDER / "runs.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows] == [(m, s) for s in "01" for m in ("LoRA", "FCLoRA")]
    with open(FOLDER / "table.csv", encoding="utf-8") as file:
        lora, fclora = csv.DictReader(file)
    for measure in ("val/accuracy", "val/loss", "retention/text/accuracy"):
        mean = sum(float(r[f"metrics/{measure}" if "val" in measure else measure]) for r in rows[0::2]) / 2
        assert float(lora[measure]) == pytest.approx(mean)
    assert fclora["compared with"] == "LoRA"
    differences = [float(b["metrics/val/loss"]) - float(a["metrics/val/loss"]) for a, b in (rows[0:2], rows[2:4])]
    assert float(fclora["val/loss difference mean"]) == pytest.approx(sum(differences) / 2)
    assert float(lora["largest_norm"]) > 0


FRONT = ["--corpora", "text.txt", "--front", "--scales", "0,0.5"]


@pytest.mark.slow
def test_for_fronts_each_run_is_measured_at_every_scale_once(compare):
    assert [command[0] for command in compare(*FRONT)] == ["fit", "retain", "fit", "retain"]
    assert compare(*FRONT) == []
    assert [command[0] for command in compare(*FRONT[:-1], "0.3")] == ["retain", "retain"]


@pytest.mark.slow
def test_what_was_measured_goes_with_a_run_that_was_removed(compare, done):
    """By hand, as far as its record and checkpoints: nothing else tells a run from the one that takes its place."""
    done(*FRONT)
    (FOLDER / "LoRA/seed_0/record.json").unlink()
    shutil.rmtree(FOLDER / "LoRA/seed_0/checkpoints")
    assert [command[0] for command in compare(*FRONT)] == ["fit", "retain"]


@pytest.mark.slow
def test_fronts_are_those_of_the_first_method_and_of_all(done):
    done(*FRONT)
    with open(FOLDER / "fronts.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # An encoder's text is measured twice: by the words that it restores, and by their loss.
    measures = "retention/text/accuracy", "retention/text/forgetting_loss"
    assert [(row["measure"], row["method"]) for row in rows] == [*product(measures, ["LoRA", "FCLoRA"])]
    lora = rows[0]
    scaled = json.loads((FOLDER / "LoRA/seed_0/front.json").read_text(encoding="utf-8"))["rows"]
    assert float(lora["score"]) == pytest.approx(max(row["measured"]["val/accuracy"] for row in scaled))
    at_zero = next(row["measured"] for row in scaled if row["value"] == 0)
    assert at_zero["retention/text/accuracy"] == at_zero["retention/text/base_accuracy"]
    assert "What each method reaches" in (FOLDER / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_damaged_front_is_told_and_stops_no_other(compare, done, capsys):
    done(*FRONT)
    (FOLDER / "LoRA/seed_0/front.json").write_text("{}")
    with pytest.raises(SystemExit):
        compare(*FRONT)
    told = capsys.readouterr().out
    assert "front.json is damaged" in told
    assert "page:" in told


def test_the_page_needs_nothing_else_and_shows_what_was_lost(done):
    done("--corpora", "text.txt")
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert "<td>" in html
    assert "loss of text accuracy (less is better)" in html
    assert not [part for part in ('src="', "<link", "@import", 'href="http', "url(http") if part in html]


@pytest.mark.slow
def test_the_table_is_printed_whatever_the_terminal_can_show(compare, done, monkeypatch):
    done(methods=["LoRA"])
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    compare(methods=["LoRA"])
    sys.stdout.flush()
    assert b"page: runs/compare/tiny/index.html" in shown.getvalue()


@pytest.mark.slow
def test_a_config_that_ships_is_compared_from_anywhere(compare, backbone_folder, mrpc_folder):
    ours = ["--config=configs/lora_roberta_mrpc.yaml", "--trainer.max_epochs=1"]
    compare(*ours, f"--model.backbone={backbone_folder('bert')}", f"--data.path={mrpc_folder}", methods=["LoRA"])
    assert Path("runs/compare/lora_roberta_mrpc/index.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("here", "status"),
    [
        (True, 3),
        pytest.param(False, 0, marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="-m always looks here")),
    ],
)
def test_runs_import_from_the_current_folder_only_if_the_comparison_does(here, status, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)] * here + [folder for folder in sys.path if folder])
    (tmp_path / "lit_spectral").mkdir()
    (tmp_path / "lit_spectral" / "__init__.py").write_text("raise SystemExit(3)")
    assert fitting.call(["--help"]) == status


def test_a_pattern_is_shown_as_it_is(compare):
    pattern = r".*(query$|\w+\.value$)"  # between dollars matplotlib reads mathematics, in which this is an error
    compare("--LoRA.target_modules", pattern, methods=["LoRA"])
    pictures = (
        (FOLDER / "index.html").read_text(encoding="utf-8").partition("<svg")[2].partition("How to run it again")[0]
    )
    assert pattern in pictures


@pytest.mark.slow
def test_one_method_is_swept_over_sizes(compare):
    assert len(compare("--model.method.rank", "2,8", methods=["FCLoRA"])) == 2


@pytest.mark.slow
def test_a_config_that_keeps_no_checkpoint_is_resumed_too(compare, tmp_path):
    content = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    del content["trainer"]["callbacks"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    compare("--metric", "val/loss", methods=["LoRA"])
    assert (RUN / "checkpoints/last.ckpt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "-1"], "--seeds are 0 or more"),
        (["--output_folder", "tiny.yaml"], "tiny.yaml/index.html can't be written"),
        (["--front"], "give --corpora or --sts too"),
        (["--front", "--scales", "0.5,0.5"], "scale: 0.5 is there twice"),
        (["--within", "-1"], "within must be at least 0"),
    ],
)
def test_bad_flags_of_its_own_are_one_line(flags, message, compare, capsys):
    with pytest.raises(SystemExit):
        compare(*flags)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_flags_of_several_values_may_be_repeated(compare):
    assert len(compare("--seeds", "1", methods=["LoRA"])) == 2


RUN = FOLDER / "LoRA/seed_0"
RESUMED = f"--ckpt_path={RUN}/checkpoints/last.ckpt"


def test_a_broken_run_goes_on_from_its_checkpoint(compare, monkeypatch):
    def breaks(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "on_train_epoch_start", breaks)
        with pytest.raises(SystemExit):
            compare("--trainer.max_epochs=2", methods=["LoRA"])
    (ran,) = compare("--trainer.max_epochs=2", methods=["LoRA"])
    assert ran[-1] == RESUMED
    assert json.loads((RUN / "record.json").read_text())["steps"] == 8


def test_a_run_that_lost_its_record_is_done_again(compare, done):
    done(methods=["LoRA"])
    (RUN / "record.json").unlink()
    assert [command[-1] == RESUMED for command in compare(methods=["LoRA"])] == [True, False]
    assert (RUN / "record.json").exists()


def test_a_folder_of_other_settings_is_refused_by_what_differs(compare, done, capsys):
    done(methods=["LoRA"])
    with pytest.raises(SystemExit):
        compare("--trainer.max_epochs=2", methods=["LoRA"])
    assert "has a run of other settings (asked for: --trainer.max_epochs=2)" in capsys.readouterr().err


def test_a_run_that_another_study_has_made_meanwhile_is_not_taken_for_its_own(compare, monkeypatch, capsys):
    fit = fitting.fit

    def late(planned, *args):
        monkeypatch.setattr(fitting, "fit", fit)
        compare("--trainer.max_epochs=2", methods=["LoRA"])  # the other one, between this one's plan and its run
        return fit(planned, *args)

    monkeypatch.setattr(fitting, "fit", late)
    with pytest.raises(SystemExit):
        compare(methods=["LoRA"])
    assert "has a run of other settings (there: --trainer.max_epochs=2)" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_never_got_anywhere_may_be_corrected(compare):
    with pytest.raises(SystemExit):
        compare("--model.backbone=nowhere", methods=["LoRA"])
    assert len(compare(methods=["LoRA"])) == 1


def test_a_mistake_in_a_flag_is_said_before_anything_runs(compare, capsys):
    with pytest.raises(SystemExit):
        compare("--FCLoRA.gamma=-1")
    assert "gamma must be at least 0" in capsys.readouterr().err
    assert not FOLDER.exists()


def test_a_method_that_there_is_not_is_told_the_nearest(compare, capsys):
    with pytest.raises(SystemExit):
        compare(methods=["FCLora"])
    assert "compare: there is no method FCLora; did you mean FCLoRA?" in capsys.readouterr().err


def test_a_metric_that_is_not_logged_is_named_with_those_that_are(compare, capsys):
    with pytest.raises(SystemExit):
        compare("--metric", "val/acuracy", methods=["LoRA"])
    assert "RunRecord: val/acuracy is not logged; there are" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_comparison_shows_what_is_done(compare, done, monkeypatch):
    def interrupt(planned, *args):
        if not planned.record.exists():
            raise KeyboardInterrupt
        return 0

    done(methods=["LoRA"])
    (FOLDER / "index.html").unlink()
    monkeypatch.setattr(fitting, "fit", interrupt)
    with pytest.raises(SystemExit) as stopped:
        compare()
    assert stopped.value.code == 130
    assert (FOLDER / "index.html").exists()


def test_interrupted_while_it_measures_a_comparison_shows_what_is_done(compare, done, monkeypatch):
    original = comparing._recorded

    def recorded(planned, *args):
        if planned.variant.arm == "FCLoRA":
            raise KeyboardInterrupt
        return original(planned, *args)

    done()
    (FOLDER / "index.html").unlink()
    monkeypatch.setattr(comparing, "_recorded", recorded)
    with pytest.raises(SystemExit) as stopped:
        compare()
    assert stopped.value.code == 130
    assert (FOLDER / "index.html").exists()


def test_a_run_that_another_process_is_at_is_left_alone(compare, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")  # the terminal, not the program, breaks lines
    (FOLDER / "LoRA/seed_0").mkdir(parents=True)
    with FileLock(FOLDER / "LoRA/seed_0/.lock"):
        assert [command[2] for command in compare()] == ["--model.method=FCLoRA"]
    assert "another process is at it" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_whose_starter_is_gone_is_left_alone(compare, capsys, monkeypatch):
    """Its own lock tells that it lives."""
    monkeypatch.setenv("COLUMNS", "20")
    (FOLDER / "LoRA/seed_0").mkdir(parents=True)
    with FileLock(FOLDER / "LoRA/seed_0/.run.lock"):
        assert [command[2] for command in compare()] == ["--model.method=FCLoRA"]
    assert "another process is at it" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["command.json", "record.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_file_of_one_run_is_told_beside_what_others_came_to(compare, done, capsys, file, content):
    done()
    (FOLDER / "LoRA/seed_0" / file).write_text(content)
    with pytest.raises(SystemExit) as stopped:
        compare()
    assert stopped.value.code == 1
    assert "failed: 1 of 2: LoRA, seed 0: " in capsys.readouterr().out
    with open(FOLDER / "runs.csv", encoding="utf-8") as table:
        assert [row["method"] for row in csv.DictReader(table)] == ["FCLoRA"]


@pytest.mark.slow
def test_a_damaged_file_of_one_run_stops_no_other(compare, done):
    done(methods=["LoRA"])
    (FOLDER / "LoRA/seed_0/record.json").write_text("{}")
    with pytest.raises(SystemExit):
        compare()
    assert (FOLDER / "FCLoRA/seed_0/record.json").exists()


def test_texts_are_looked_at_before_the_first_run(compare, capsys, tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\u00e9\n".encode("latin-1") * 20)
    with pytest.raises(SystemExit):
        compare("--corpora", "text.txt", "latin.txt")
    assert "latin.txt, line 1 can't be read" in capsys.readouterr().err
    assert not FOLDER.exists()


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other(compare, tmp_path, capsys):
    """Methods of very different size: the second is refused when it starts, in a process of its own."""
    with pytest.raises(SystemExit) as stopped:
        compare("--FCLoRA.rank=2", process=True)
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    assert "failed: 2 of 2: FCLoRA rank=2, seed 0" in out
    assert (FOLDER / "index.html").exists()


@pytest.mark.slow
def test_quickstart_ends_with_the_path_of_a_page(compare, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "call", lambda flags: 0 if cli.run(flags) else 1)
    cli.main(["quickstart", "tiny.yaml"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert Path(last.removeprefix("page: ")).name == "index.html"
    assert Path(last.removeprefix("page: ")).exists()
