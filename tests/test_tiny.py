"""The built-in backbone: the same wherever it is made of the same, under another name where it isn't."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import WORDS
from transformers import AutoModelForMaskedLM, AutoTokenizer

from lit_spectral import backbones, tiny
from lit_spectral.errors import InputError
from lit_spectral.tiny import train_tokenizer

ROOT = Path(__file__).parents[1]
# Most pairs of characters are as frequent as others.
TEXT = [f"the {first}{second} {second}er {first}s" for first in WORDS for second in WORDS]
SMALL = {"vocab_size": 160, "hidden_size": 32, "intermediate_size": 48}


@pytest.fixture
def small(monkeypatch):
    """Pretraining in a second."""
    monkeypatch.setattr(tiny, "sentences", lambda: TEXT)
    monkeypatch.setattr(tiny, "SHAPE", tiny.SHAPE | SMALL)
    monkeypatch.setattr(tiny, "STEPS", 4)


@pytest.fixture(scope="module")
def made_twice(tmp_path_factory):
    """The folders of this process and one that differs in hash seed, threads and torch's settings."""
    script = (
        "import sys, json, torch; from lit_spectral import tiny, backbones\n"
        "text, small = json.loads(sys.argv[1])\n"
        "torch.set_num_threads(3); torch.set_default_dtype(torch.bfloat16); torch.manual_seed(3)\n"
        "tiny._text = lambda: text; tiny.SHAPE |= small; tiny.STEPS = 4\n"
        "backbones.fetch('tiny')\n"
    )
    caches = [tmp_path_factory.mktemp("cache") for _ in range(2)]
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    own = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "3", "LIT_SPECTRAL_CACHE": str(caches[1])}
    other = subprocess.Popen([sys.executable, "-c", script, json.dumps([TEXT, SMALL])], env=os.environ | own, cwd=ROOT)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(tiny, "_text", lambda: TEXT)
        patch.setattr(tiny, "SHAPE", tiny.SHAPE | SMALL)
        patch.setattr(tiny, "STEPS", 4)
        patch.setenv("LIT_SPECTRAL_CACHE", str(caches[0]))
        torch.manual_seed(1)
        backbones.fetch("tiny")
    assert other.wait(240) == 0
    return [folder for cache in caches for folder in cache.glob("backbones/tiny-*")]


@pytest.mark.slow
def test_two_processes_make_the_same_vocabulary(made_twice):
    first, second = ((folder / "tokenizer.json").read_bytes() for folder in made_twice)
    assert first == second
    assert b"##" in first


@pytest.mark.slow
def test_two_processes_make_the_same_model_under_the_same_name(made_twice):
    first, second = made_twice
    assert first.name == second.name
    files = sorted(path.name for path in first.iterdir())
    assert "model.safetensors" in files
    assert {name: (first / name).read_bytes() for name in files} == {p.name: p.read_bytes() for p in second.iterdir()}


@pytest.mark.slow
def test_the_model_is_trained_in_float32(made_twice):
    model = AutoModelForMaskedLM.from_pretrained(made_twice[1])
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.equal(model.head.norm.weight, torch.ones(32))  # with which it starts


def test_of_equally_frequent_pairs_the_first_in_the_alphabet_are_merged():
    tokenizer = train_tokenizer(["da ca ba xyz da ca ba"], vocab_size=17, longest=32)
    # After five special tokens what goes on a word, what begins one, and two of three pairs.
    assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[5:] == [
        *("##a", "##y", "##z"),
        *("a", "b", "c", "d", "x", "y", "z"),
        *("ba", "ca"),
    ]


def test_pieces_that_go_on_a_word_are_no_special_tokens():
    tokenizer = train_tokenizer(TEXT, vocab_size=160, longest=32)
    assert sorted(tokenizer.get_added_vocab()) == ["[CLS]", "[MASK]", "[PAD]", "[SEP]", "[UNK]"]
    assert tokenizer.tokenize("##s") == ["[UNK]", "[UNK]", "s"]  # the text has no #


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sentences", lambda: [*TEXT, "one sentence more"]),
        ("STEPS", 5),
        ("SHAPE", tiny.SHAPE | SMALL | {"hidden_size": 64}),
        ("LEARNING_RATE", 1e-3),
        ("FORMAT", 0),
    ],
)
def test_what_is_made_of_something_else_has_another_name(small, monkeypatch, name, value):
    before = tiny._name(tiny._text())
    assert tiny._name(tiny._text()) == before
    monkeypatch.setattr(tiny, name, value)
    assert tiny._name(tiny._text()) != before


@pytest.mark.parametrize("library", ["torch", "transformers", "tokenizers"])
def test_another_version_of_a_library_makes_another_name(small, monkeypatch, library):
    before = tiny._name(TEXT)
    monkeypatch.setattr(f"{library}.__version__", "0")
    assert tiny._name(TEXT) != before


def test_another_processor_makes_another_name(small, monkeypatch):
    before = tiny._name(TEXT)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert tiny._name(TEXT) != before


def test_torch_is_left_as_it_was(small, tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_SPECTRAL_CACHE", str(tmp_path))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode(), torch.autocast("cpu"):
        folder = tiny.fetch()
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert AutoTokenizer.from_pretrained(folder).vocab_size <= SMALL["vocab_size"]


def test_it_is_made_once(small, tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_SPECTRAL_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(tiny, "_pretrain", lambda text, folder: calls.append(folder) or folder.mkdir())
    assert backbones.fetch("tiny") == backbones.fetch("tiny") == str(tiny.fetch())
    assert len(calls) == 1


def test_a_cache_that_can_not_be_written_is_said_before_pretraining(small, read_only_folder, monkeypatch):
    monkeypatch.setenv("LIT_SPECTRAL_CACHE", str(read_only_folder))
    monkeypatch.setattr(tiny, "_pretrain", None)
    with pytest.raises(InputError, match=r"tiny can't be kept in .*backbones .* set LIT_SPECTRAL_CACHE to a folder"):
        tiny.fetch()


def test_no_import_leads_from_backbones_back_to_it():
    folders = {"lit_spectral": ROOT / "lit_spectral"}
    folders |= {f"lit_spectral.{name}": ROOT / name for name in ("callbacks", "datamodules")}
    sources = {}
    for package, folder in folders.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            sources[".".join([package, *(part for part in parts if part != "__init__")])] = path

    del sources["lit_spectral"]  # the door that users come by, which imports nothing before they ask

    def imported(module):
        for node in ast.walk(ast.parse(sources[module].read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{name}" for name in names)]
            for name in names:  # and the packages that it lies in
                parts = name.split(".")
                yield from {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & sources.keys()

    met, ahead = set(), ["lit_spectral.backbones"]
    while ahead:
        new = set(imported(ahead.pop())) - met
        met |= new
        ahead += new
    assert "lit_spectral.tiny" in met
    assert "lit_spectral.backbones" not in met
    assert not [name for name in met if name.startswith(("lit_spectral.tasks", "lit_spectral.datamodules"))]
