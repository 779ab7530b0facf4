"""docs/guides/ followed line by line, with tiny models in place of those that they name; peft's calls beside ours."""

import re
import shutil
from pathlib import Path

import pytest
import transformers
from doc_pages import ROOT, blocks, commands, ours
from lit_spectral.datamodules import corpora
from peft import LoraConfig, get_peft_model

from lit_spectral import cli
from lit_spectral.verbs import LIGHTNING

GUIDES = ROOT / "docs" / "guides"
# What a guide's commands get besides: an end, and quiet.
SHORT = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
SHORT += ["--trainer.enable_model_summary=false", "--data.batch_size=2"]
OFF = ["--trainer.logger=false", "--trainer.callbacks=null", "--trainer.enable_checkpointing=false"]

# Files that others begin with: of which config, by which method.
RUNS = [("best", "reviews", "FCLoRA"), ("second", "reviews", "LoRA"), ("notes", "notes", "LoRA")]


def act(words):
    """Run a command of ours in this process."""
    name, *flags = words
    if name in LIGHTNING:
        cli.run([name, *flags, *SHORT])
    else:
        cli.main([name, *flags, *(["--limit", "8", "--max_length", "32"] if name == "retain" else [])])


def write(block):
    """A block that is a file, where it says."""
    file = Path(block.file)
    file.parent.mkdir(exist_ok=True)
    file.write_text(block.text, encoding="utf-8")


def files_of(page):
    return [block for block in blocks(GUIDES / page) if block.file]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory, backbone_folder, decoder_folder):
    """A folder with backbones under the names that the guides call them by."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "HuggingFaceTB").mkdir()
    (folder / "roberta-base").symlink_to(backbone_folder("roberta"))
    (folder / "HuggingFaceTB" / "SmolLM2-135M").symlink_to(decoder_folder("llama"))
    return folder


@pytest.fixture(scope="module")
def trained(backbones, tmp_path_factory):
    """What guides on what follows training begin with: files of fit's, and the config and data of two of them."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shutil.copytree(backbones, folder, symlinks=True, dirs_exist_ok=True))
        for block in (*files_of("classify.md"), *files_of("instruct.md")):
            write(block)
        for name, config, method in RUNS:
            given = [f"--config={config}.yaml", f"--model.method={method}", "--model.method.rank=8"]
            done = cli.run(["fit", *given, *OFF, *SHORT])
            done.trainer.save_checkpoint(f"{name}.ckpt", weights_only=True)
        shutil.copy("best.ckpt", "first.ckpt")
    return folder


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Go to a copy of a folder, where Python finds modules too."""

    def begin(folder):
        monkeypatch.chdir(shutil.copytree(folder, tmp_path, symlinks=True, dirs_exist_ok=True))
        monkeypatch.syspath_prepend(tmp_path)

    return begin


# Guides that begin with nothing.
ALONE = ["classify.md", "instruct.md", "own_data.md"]


@pytest.mark.parametrize("page", sorted(page.name for page in GUIDES.glob("*.md")))
@pytest.mark.slow
def test_a_guide_does_what_it_says(request, work, monkeypatch, page):
    few = ["A list is a mutable sequence.", "Return the absolute value of a number."] * 8
    monkeypatch.setattr(corpora, "sentences", lambda: few)  # reading all of Python's documentation takes seconds
    work(request.getfixturevalue("backbones" if page in ALONE else "trained"))
    names, tests = {}, []
    for block in blocks(GUIDES / page):
        if block.file:
            write(block)
            tests += [block] if block.file.startswith("test_") else []
        elif block.kind == "python":
            exec(compile(block.text, block.place, "exec"), names)
        elif block.kind == "sh":
            for words in commands(block.text):
                if (given := ours(words)) is not None:
                    act(given)
    for block in tests:
        found = {}
        exec(compile(block.text, block.file, "exec"), found)
        for name in [name for name in found if name.startswith("test_")]:
            found[name]()


@pytest.fixture
def fresh(work, backbones, mrpc_folder):
    """The backbone anew; and adapters of peft's, and data, where the page on peft has them."""
    work(backbones)

    def load():
        return transformers.AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")

    for name in ("adapter", "second"):
        settings = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(load(), settings).save_pretrained(name)
    Path("mrpc").symlink_to(mrpc_folder)
    return load


@pytest.mark.slow
def test_calls_of_peft_and_ours_beside_them(fresh):
    page = ROOT / "docs" / "from_peft.md"
    code = {block.file: block for block in blocks(page) if block.kind == "python"}
    tokens = transformers.AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M")(
        ["the cat sat"], return_tensors="pt"
    )
    theirs, here = {"batch": tokens}, {"batch": tokens}
    exec(code["peft"].text, theirs)
    exec(code["here"].text, here)
    table = page.read_text(encoding="utf-8").partition("## Its calls, and ours")[2].partition("##")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (?:`([^`]+)`)?", table, re.MULTILINE)
    assert len(rows) == table.count("\n| ") - 2  # but for the head and its line
    for call, said in rows:
        theirs["base"] = fresh()
        exec(call, theirs)
        if said.startswith("--"):
            config = ["--config=configs/lora_llama2_gsm8k.yaml"]
            with pytest.raises(SystemExit) as stop:
                cli.run(["fit", *config, *commands(said)[0], "--print_config"])
            assert not stop.value.code
        elif said.startswith("lit-spectral"):
            act(ours(commands(said)[0]))
        elif said:
            exec(said, here)
    exec(code[None].text, here)
