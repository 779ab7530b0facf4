"""Every mistake at the command line is one line: what, where, remedy; and what is accepted on purpose."""

import io
import json
import logging
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from bad_files import FILES
from conftest import CONFIGS
from squad_rows import questions, write

from lit_spectral import cli
from lit_spectral.errors import LONGEST

# A file a section: its commands, or flags after those of `place`, each with how its line begins. Those of
# encoder_later.txt are found when objects are made, a model loaded or data read. Of rows that are told by the same
# words the first is tried on every run, the others and those of encoder_later.txt where there is time.
ROWS = [
    (file.stem, *line.split(" ⇒ "))
    for file in sorted(Path(__file__).with_name("mistakes").glob("*.txt"))
    for line in file.read_text(encoding="utf-8").splitlines()
]


def words(row):
    """What a mistake is told by, but for setting and value: rows that share it try one rule on several flags."""
    section, command, begins = row
    about, _, said = re.sub(r"'[^']*'|\S*[./=]\S*|-?\d\S*", "", begins).partition(": ")
    return section, command.split()[0], said or about


FIRST = {words(row): row for row in reversed(ROWS)}
TABLE = [
    pytest.param(
        *row,
        id=f"{row[0]}: {row[1]}",
        marks=[] if FIRST[words(row)] == row and row[0] != "encoder_later" else pytest.mark.slow,
    )
    for row in ROWS
]
# What may look like a mistake, and why it is none.
ACCEPTED = {
    "--trainer.callbacks+=SpectralMonitor --trainer.callbacks.every_n_steps=0": "switches the monitor off",
    "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss --trainer.callbacks.patience=-1": (
        "Lightning's: it stops after the first validation"
    ),
    "--trainer.default_root_dir=/proc/nowhere": "nothing is written there, since the logger has a folder",
    "--trainer.precision=16-mixed": "Lightning takes bf16-mixed on a CPU, and says so",
    "--model.metrics=[accuracy,accuracy]": "counted once",
    "--model.optimizer=null": "the default",
    "--model.optimizer.lr=3": "a rate like any other",
    "--model.method.principal_rank=31": "one direction is left",
    "--data.max_length=1000000": "the tokenizer's bound holds",
}


@pytest.fixture(scope="module")
def place(backbone_folder, decoder_folder, mrpc_folder, tmp_path_factory):
    """A folder with what mistakes are made with, and from a section to the flags that come before."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    for name in ("prompts", "squad", "tasks"):
        (folder / name).mkdir()
    for split, count in (("train", 20), ("validation", 6), ("test", 6)):
        write(folder / "prompts", split, [{"question": "the cat sat on", "answer": "the mat"}] * count)
    for split, count in (("train", 9), ("validation", 6)):
        write(folder / "squad", split, questions(count, 0))
    task = {"task": "local_arc", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice"}
    task |= {"doc_to_text": "{{given}}", "doc_to_choice": "choices", "doc_to_target": "gold"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(folder / "choices.jsonl")}}}
    (folder / "tasks" / "local_arc.yaml").write_text(json.dumps(task))
    write(folder, "choices", [{"given": "the cat", "choices": ["a", "b"], "gold": 0}] * 4)
    quiet = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    quiet.append("--trainer.enable_model_summary=false")
    bert, llama = f"--model.backbone={backbone_folder('bert')}", f"--model.backbone={decoder_folder()}"
    roberta = f"--model.backbone={backbone_folder('roberta')}"
    prompted = ["--data=PromptedText", "--data.path=prompts", "--data.prompt={question}", "--data.answer={answer}"]
    before = {
        "encoder": [f"--config={CONFIGS / 'fclora_roberta_mrpc.yaml'}", roberta, f"--data.path={mrpc_folder}", *quiet],
        "decoder": ["--model=CausalLM", llama, *prompted, *quiet],
        "questions": ["--model=QuestionAnswering", bert, "--data=SQuAD", "--data.path=squad", *quiet],
        "masked_words": ["--model=MaskedLM", bert, "--data=MaskedText", "--data.path=text.txt", *quiet],
        "verbs": [],
    }
    logger = logging.getLogger("lit_spectral")
    level, handlers = logger.level, list(logger.handlers)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", *before["encoder"], "--trainer.logger.init_args.save_dir=made"])
    logger.setLevel(level)
    logger.handlers[:] = handlers
    settings = {"class_path": "SequenceClassification", "init_args": {"backbone": backbone_folder("bert")}}
    data = {"class_path": "GLUE", "init_args": {"path": mrpc_folder}}
    (folder / "own.yaml").write_text(json.dumps({"model": settings, "data": data, "trainer": {"accelerator": "cpu"}}))
    paths = {"CKPT": str(next(folder.rglob("last.ckpt"))), "CONFIG": "own.yaml", "BACKBONE": decoder_folder()}
    return folder, before, paths


def give(place, section, command):
    """Exit status and stderr of a command."""
    folder, before, paths = place
    for word, path in paths.items():
        command = command.replace(word, path)
    verb, *flags = command.split()
    section = section.removesuffix("_later")
    args = [] if verb == "nothing" else [verb, *before[section], *flags]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said), redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        try:
            cli.main(args)
        except SystemExit as stop:
            return stop.code, said.getvalue()
    return 0, said.getvalue()


@pytest.mark.parametrize(("section", "command", "begins"), TABLE)
def test_a_mistake_is_one_line(place, section, command, begins):
    status, said = give(place, section, command)
    lines = [line for line in said.splitlines() if line.startswith(("error:", "usage:", "Traceback"))]
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith(f"error: {begins}")
    assert len(lines[0]) <= LONGEST


@pytest.mark.slow
def test_arguments_that_torchs_ddp_refuses_are_one_line(place):
    """In a process of its own: one that takes part in a group leaves its port to those that it starts."""
    folder, before, _ = place
    flags = ["--trainer.strategy=DDPStrategy", "--trainer.strategy.find_unused_parameters=perhaps"]
    command = [sys.executable, "-m", "lit_spectral", "fit", *before["encoder"], *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(("error:", "Traceback"))]
    assert done.returncode == 2
    assert line.startswith("error: trainer: distributed refused its settings: __init__(): incompatible")


@pytest.mark.parametrize("flags", ACCEPTED)
def test_what_is_accepted_on_purpose(place, flags):
    assert give(place, "encoder", f"fit {flags}")[0] == 0
