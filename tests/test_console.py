"""What the command line shows: little by default, everything with --verbose; lists, help and configs to start from."""

import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from conftest import CONFIGS
from lightning.pytorch.cli import LightningCLI

from lit_spectral import cli, help_screens, listing, methods, starting_config, terminal
from lit_spectral.errors import Parser
from lit_spectral.lightning_cli import SpectralCLI
from lit_spectral.verbs import LIGHTNING, VERBS


def lines_of(folder, *args):
    """Of a command in a process of its own: standard output and error together, as they are off a terminal."""
    command = [sys.executable, "-m", "lit_spectral", *args]
    # Other tests may have spoken in this process.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TQDM_", "TRANSFORMERS_V"))}
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
        env=env | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return [line for line in done.stdout.splitlines() if line.strip()]


@pytest.fixture
def flags(backbone_folder, mrpc_folder):
    local = [f"--model.backbone={backbone_folder('roberta')}", f"--data.path={mrpc_folder}"]
    return [f"--config={CONFIGS / 'fclora_roberta_mrpc.yaml'}", *local, "--trainer.accelerator=cpu"]


@pytest.mark.slow
def test_a_fit_is_a_line_at_the_start_one_a_validation_and_a_block_whose_commands_work(flags, tmp_path, monkeypatch):
    once = ["--trainer.max_epochs=2", "--trainer.log_every_n_steps=1"]
    head, *lines = lines_of(tmp_path, "fit", *flags, *once)
    assert re.match(r"FCLoRA \(rank \d+\) of .* for SequenceClassification on GLUE; 12 maps \(.*parameters.*σ ≤", head)
    steps, end = lines[:2], lines[2:]
    assert [re.sub(r"[\d.]+", "0", line) for line in steps] == [
        "step 0: train/loss 0  σ_max 0  val/loss 0  val/accuracy 0  val/f0 0"
    ] * 2
    assert [line.partition(":")[0] for line in end[:4]] == ["best val/accuracy", "checkpoint", "log folder", "next"]
    commands = [line.split() for line in end[4:]]
    assert [words[0] for words in commands] == ["tensorboard", *["lit-spectral"] * 3]
    monkeypatch.chdir(tmp_path)
    assert os.path.isdir(commands[0][-1])
    for words in commands[1:]:
        cli.main(words[1:])


@pytest.fixture
def has_bf16(monkeypatch):
    """Models of any size, on a processor with or without instructions for bfloat16."""

    def has(yes):
        monkeypatch.setattr("lit_spectral.precision.SMALL", 0)
        monkeypatch.setattr("lit_spectral.precision._has_bf16", lambda device: yes)

    return has


@pytest.mark.parametrize(
    ("precision", "there", "said"), [("32-true", True, True), ("bf16-mixed", True, False), ("32-true", False, False)]
)
def test_float32_is_said_to_be_slow_where_there_is_bfloat16(fit, has_bf16, capsys, precision, there, said):
    has_bf16(there)
    fit(
        "fclora_roberta_mrpc",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
        f"--trainer.precision={precision}",
    )
    assert ("--trainer.precision bf16-mixed" in capsys.readouterr().out) == said


@pytest.mark.parametrize("sweep", [[], ["--scale=0:1:1"]])
@pytest.mark.parametrize(("given", "said"), [([], True), (["--bf16"], False)])
def test_so_it_is_where_retention_is_measured(fit, has_bf16, capsys, tmp_path, given, said, sweep):
    trainer = fit("fclora_roberta_mrpc", "--trainer.max_steps=1", "--trainer.limit_val_batches=0").trainer
    trainer.save_checkpoint("a.ckpt")
    (tmp_path / "words.txt").write_text("one two three four\n" * 4)
    has_bf16(True)
    cli.main(["retain", "--checkpoint=a.ckpt", "--corpora=words.txt", "--device=cpu", *sweep, *given])
    assert ("much faster here: --bf16" in capsys.readouterr().out) == said


@pytest.mark.slow
def test_verbose_brings_back_what_libraries_say(flags, tmp_path):
    told = "\n".join(lines_of(tmp_path, "fit", *flags, "--trainer.max_epochs=1", "--verbose"))
    for part in ("GPU available", "Seed set to", "SVD", "Trainable params", "Loading weights"):
        assert part in told


@pytest.mark.parametrize(
    ("module", "category", "shown"),
    [
        (subprocess.__file__, FutureWarning, False),
        (terminal.__file__, DeprecationWarning, False),
        (__file__, FutureWarning, True),
        (subprocess.__file__, UserWarning, True),
    ],
)
def test_a_deprecation_is_shown_of_the_users_own_files_alone(capsys, module, category, shown):
    terminal.speak()
    warnings.simplefilter("always")
    warnings.warn_explicit("old\nway", category, module, 1)
    assert capsys.readouterr().err == ("warning: old way\n" if shown else "")


def test_verbose_is_taken_off_any_verb(capsys):
    for args in (["methods", "--verbose"], ["--verbose", "methods"]):
        cli.main(args)
        assert "FCLoRA" in capsys.readouterr().out
        assert terminal.is_verbose()
    cli.main(["methods"])
    assert not terminal.is_verbose()


@pytest.mark.parametrize("verb", [None, *LIGHTNING, *VERBS])
def test_help_fits_a_screen(verb, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.main([*([verb] if verb else []), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("verb", LIGHTNING)
def test_help_names_flags_that_there_are(verb, monkeypatch):
    monkeypatch.setattr(SpectralCLI, "parse_arguments", lambda self, parser, args: (_ for _ in ()).throw(Got(self)))
    with pytest.raises(Got) as got:
        cli.run([verb])
    (parser,) = got.value.args[0]._subcommand_parsers.values()
    known = {flag for action in parser._actions for flag in action.option_strings}
    task, method, data = listing.task_classes(), listing.method_classes(), listing.data_modules()
    for section, kind in (
        ("model", task["CausalLM"]), ("model.method", method["FCLoRA"]), ("data", data["PromptedText"])
    ):  # fmt: skip
        parents = inspect.getmro(kind)[:-1]
        known |= {f"--{section}.{name}" for each in parents for name in inspect.signature(each).parameters}
    shown = {flag.split()[0] for flag in help_screens.FLAGS if flag.split()[0] in help_screens.of_lightning(verb)}
    assert {flag for flag in shown if not flag.startswith("--model.optimizer.")} <= known


class Got(BaseException):
    """Carries what was asked for."""


def flags_of(verb, monkeypatch):
    """The long flags of the parser that a verb makes first."""

    def stop(parser, *args, **kwargs):
        raise Got(parser)

    for name in ("parse_args", "parse_known_args"):
        monkeypatch.setattr(Parser, name, stop)
    with pytest.raises(Got) as got:
        VERBS[verb].run([])
    monkeypatch.undo()
    return [flag for flag in got.value.args[0]._option_string_actions if flag.startswith("--") and flag != "--help"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_mistyped_flag_names_the_nearest(verb, monkeypatch, capsys):
    for flag in flags_of(verb, monkeypatch):
        mistyped = flag[:3] + flag[2:]
        with pytest.raises(SystemExit):
            cli.main([verb, f"{mistyped}=1"])
        assert f"{verb}: there is no {mistyped}; did you mean --" in capsys.readouterr().err


def test_lists_have_a_line_for_each_that_there_is(capsys):
    expected = {
        "methods": set(methods.__all__) - {"Method", "LowRankMethod", "Bound", "Given"},
        "tasks": {"CausalLM", "MaskedLM", "QuestionAnswering", "SequenceClassification"},
        "data": set(listing.data_modules()),
        "configs": {f"configs/{file.name}" for file in CONFIGS.glob("*.yaml")},
    }
    for verb, names in expected.items():
        cli.main([verb])
        lines = capsys.readouterr().out.splitlines()
        assert {line.split()[0] for line in lines} == names
        assert all(len(line.split()) > 2 for line in lines)


PAIRS = [(method, task) for method in listing.method_classes() for task in listing.task_classes()]


@pytest.fixture(scope="module")
def parser():
    """LightningCLI's for `fit`, made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LightningCLI, "parse_arguments", lambda self, parser, args: (_ for _ in ()).throw(Got(self)))
        with pytest.raises(Got) as got:
            SpectralCLI(["fit"])
    return got.value.args[0]._subcommand_parsers["fit"]


@pytest.mark.parametrize("commented", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_config_to_start_from_is_one_that_fit_takes(parser, tmp_path, commented):
    for number, (method, task) in enumerate(PAIRS):
        if number % 4 and not commented:  # a parse takes a while; each method once
            continue
        text = starting_config.render(method, "a: b", task)
        if not commented:  # every default written out
            text = re.sub(r"^( +)# (?=(\w+): |init_args:)", r"\1", text, flags=re.MULTILINE)
        file = tmp_path / f"{method}_{task}_{commented}.yaml"
        file.write_text(text, encoding="utf-8")
        config = parser.parse_args([f"--config={file}"])
        assert config.model.class_path.endswith(f".{task}")
        assert config.model.init_args.method.class_path.endswith(f".{method}")
        assert config.model.init_args.backbone == "a: b"


@pytest.mark.parametrize(
    ("method", "task", "anchor"),
    [
        ("FCLoRA", "SequenceClassification", {"weight": 0.25}),
        ("HiRA", "CausalLM", {"weight": 1.0, "text": "self"}),
        ("LoRA", "MaskedLM", None),
        ("FullFineTuning", "CausalLM", None),  # after it there is no backbone to stay near
    ],
)
def test_a_config_to_start_from_is_anchored_where_it_can_be(method, task, anchor):
    settings = yaml.safe_load(starting_config.render(method, "tiny", task))["model"]["init_args"]
    assert settings.get("anchor") == anchor


def test_a_sentence_encoder_at_hand_is_not_anchored(backbone_folder, tmp_path):
    folder = backbone_folder("bert")
    headless = json.loads(Path(folder, "config.json").read_text(encoding="utf-8")) | {"architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(headless))
    for place, anchored in ((folder, True), (tmp_path, False)):
        config = yaml.safe_load(starting_config.render("LoRA", str(place), "SequenceClassification"))
        assert ("anchor" in config["model"]["init_args"]) == anchored


def test_a_run_without_validation_ends_with_its_loss(fit, capsys):
    fit(
        "fclora_roberta_mrpc", "--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=1"
    )
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert re.match(r"step 2: train/loss \d.*σ_max \d", line)


def test_what_a_monitor_last_kept_is_told_at_the_end(fit, tmp_path, capsys):
    (tmp_path / "words.txt").write_text("one two three four\n" * 4)
    monitor = '{"class_path": "RetentionMonitor", "init_args": {"corpora": {"words": "words.txt"}}}'
    fit("fclora_roberta_mrpc", "--trainer.max_steps=1", f"--trainer.callbacks+={monitor}")
    assert "\nretention: words/loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "lr"), [("LoRA", 4e-4), ("FCLoRA", 1e-3), ("HiLoRA", 1e-3), ("FullFineTuning", 2e-5)]
)
def test_a_config_to_start_from_has_a_rate_for_its_method(method, lr):
    settings = yaml.safe_load(starting_config.render(method, "tiny", "CausalLM"))["model"]["init_args"]
    assert settings["optimizer"]["init_args"]["lr"] == lr


@pytest.mark.parametrize("task", listing.task_classes())
def test_a_config_to_start_from_can_be_of_all_data_of_the_task(task):
    kinds = listing.task_classes()[task].data_modules
    for name in [name for name, kind in listing.data_modules().items() if issubclass(kind, kinds)]:
        assert yaml.safe_load(starting_config.render("LoRA", "tiny", task, name))["data"]["class_path"] == name


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["FCLora", "tiny", "CausalLM"], "config: there is no method FCLora; did you mean FCLoRA?"),
        (["LoRA", "tiny", "CausalML"], "config: there is no task CausalML; did you mean CausalLM?"),
        (["LoRA", "tiny", "MaskedLM", "--data", "GLUE"], "config: there is no data for MaskedLM GLUE; there are Mask"),
        (["LoRA", "tiny", "MaskedLM", "--output", "there.yaml"], "config: there.yaml is there already"),
    ],
)
def test_a_bad_name_of_a_config_is_one_line(args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("mine")
    with pytest.raises(SystemExit):
        cli.main(["config", *args])
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert (tmp_path / "there.yaml").read_text() == "mine"


def test_a_config_to_start_from_is_written_where_it_is_told(tmp_path, capsys):
    cli.main(["config", "LoRA", "tiny", "MaskedLM", "--output", str(tmp_path / "new" / "x.yaml")])
    assert (tmp_path / "new" / "x.yaml").read_text() == starting_config.render("LoRA", "tiny", "MaskedLM")
