"""Tiny random backbones and data folders, made once a session; nothing is downloaded."""
# ruff: noqa: E402

import gc
import json
import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

# Before any library looks there: neither tests nor the processes that they start see the user's home.
HOME = tempfile.TemporaryDirectory(prefix="lit_spectral_home_")
for name in [name for name in os.environ if name.startswith(("GIT_", "HF_", "XDG_"))]:
    del os.environ[name]
os.environ |= {"HOME": HOME.name, "GIT_CONFIG_NOSYSTEM": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["OMP_NUM_THREADS"] = "1"  # tests run in parallel, one process a core, and what they start as well
if "LIT_SPECTRAL_BACKBONE" not in os.environ:  # tests on a real one take what there is
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # figures are compared to their last digits

import lightning.pytorch as pl
import pytest
import tokenizers
import torch
import transformers
import yaml
from filelock import FileLock
from lightning.pytorch.callbacks import Checkpoint
from lit_spectral.datamodules import GLUE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_spectral import cli
from lit_spectral.tasks import SequenceClassification
from lit_spectral.tiny import train_tokenizer

torch.set_num_threads(1)  # which may have been imported with more
# A tenth of the time would go by looking through the libraries for garbage.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

CONFIGS = Path(__file__).parents[1] / "configs"
WORDS = [
    "the",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "under",
    "over",
    "mat",
    "hill",
    "tree",
    "and",
    "then",
    "slept",
    "again",
    "quietly",
]
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE)),
    "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SHAPE)),
    "deberta": lambda: transformers.DebertaV2ForMaskedLM(
        transformers.DebertaV2Config(
            **SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True, position_buckets=8
        )
    ),
    "mpnet": lambda: transformers.MPNetForMaskedLM(transformers.MPNetConfig(**SHAPE)),
    "electra": lambda: transformers.ElectraForMaskedLM(transformers.ElectraConfig(**SHAPE, embedding_size=16)),
    "albert": lambda: transformers.AlbertForMaskedLM(transformers.AlbertConfig(**SHAPE, embedding_size=16)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
        )
    ),
    "distilbert": lambda: transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=2, hidden_dim=48, pad_token_id=0)
    ),
}


def made_once(tmp_path_factory, name, make):
    """A folder that `make` fills when it is first asked for, by any of the processes that share a session's tests."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder, done = shared / name, shared / f"{name}.made"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # one that came to no end
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@torch.no_grad()
def move(model, size):
    """Take all that is trained away from where it began."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn_like(parameter))


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory):
    """From the name of an architecture to a folder with a random model of it and a tokenizer."""
    root = tmp_path_factory.mktemp("backbones")
    tokenizer = train_tokenizer([" ".join(WORDS)], vocab_size=64, longest=48)

    def folder(architecture):
        path = root / architecture
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                ARCHITECTURES[architecture]().save_pretrained(path)
            tokenizer.save_pretrained(path)
        return str(path)

    return folder


@pytest.fixture(scope="session")
def decoder_folder(backbone_folder, tmp_path_factory):
    """From an architecture to a folder of its random model and a tokenizer with EOS that puts BOS first, or doesn't."""
    root = tmp_path_factory.mktemp("decoders")

    def folder(architecture="llama", bos=True):
        path = root / f"{architecture}-{bos}"
        if not path.exists():
            shutil.copytree(backbone_folder(architecture), path)
            tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            opening, ending = tokenizer.cls_token, tokenizer.sep_token
            tokenizer._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single=f"{opening} $A" if bos else "$A", special_tokens=[(opening, tokenizer.cls_token_id)]
            )
            tokenizer.bos_token, tokenizer.eos_token = opening, ending
            tokenizer.save_pretrained(path)
        return str(path)

    return folder


@pytest.fixture(scope="session")
def long_decoder(decoder_folder, tmp_path_factory):
    """A tiny decoder that reads windows of 256 tokens."""
    folder = shutil.copytree(decoder_folder(), tmp_path_factory.mktemp("decoder") / "llama")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 256}))
    return str(folder)


@pytest.fixture
def text(tmp_path):
    """A file of random lines."""
    generator = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=generator)) for _ in range(24)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "text.txt")


@pytest.fixture(scope="session")
def mrpc_folder(tmp_path_factory):
    """A folder in MRPC's form: the label says whether both sentences are the same."""
    folder = tmp_path_factory.mktemp("mrpc")
    generator = torch.Generator().manual_seed(0)

    def sentence():
        length = int(torch.randint(3, 12, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))

    for split, count in (("train", 64), ("validation", 24), ("test", 12)):
        rows = []
        for index in range(count):
            first = sentence()
            label = index % 2
            rows.append({"sentence1": first, "sentence2": first if label else sentence(), "label": label, "idx": index})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture(autouse=True)
def log_level():
    """What a command does to logs is gone after the test, and what one did that a fixture of many tests ran, before."""
    logger, root = logging.getLogger("lit_spectral"), logging.getLogger()
    logger.setLevel(logging.NOTSET)
    yield
    logger.setLevel(logging.NOTSET)
    root.handlers[:] = [h for h in root.handlers if not type(h).__module__.startswith("lit_spectral.")]


@pytest.fixture(autouse=True)
def surroundings(tmp_path_factory, monkeypatch):
    """The package's cache, shared by the tests of a process, and a terminal, both not the user's."""
    monkeypatch.setenv("LIT_SPECTRAL_CACHE", str(tmp_path_factory.getbasetemp() / "lit_spectral"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def shared_folder():
    """A folder that another user can come to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def another_user():
    """Within it, modes of files count: root, who may all, is nobody."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def read_only_folder(shared_folder):
    """An empty folder in which this process may write nothing."""
    shared_folder.chmod(0o555)
    with another_user():
        yield shared_folder
    shared_folder.chmod(0o755)


@pytest.fixture
def fit(backbone_folder, mrpc_folder, tmp_path, monkeypatch):
    """Run `fit` of a shipped config on a tiny model, in this process; returns the LightningCLI."""

    def run(config, *flags, architecture=None, command="fit"):
        monkeypatch.chdir(tmp_path)
        name = config.split("_")[1] if architecture is None else architecture
        return cli.run(
            [
                command,
                f"--config={CONFIGS / config}.yaml",
                f"--model.backbone={backbone_folder(name)}",
                f"--data.path={mrpc_folder}",
                "--trainer.max_epochs=1",
                "--trainer.accelerator=cpu",
                "--trainer.enable_progress_bar=false",
                "--trainer.enable_model_summary=false",
                *flags,
            ]
        )

    return run


@pytest.fixture
def command(tmp_path, decoder_folder, monkeypatch):
    """Run a subcommand of CausalLM on tiny Llama with a data module; returns the LightningCLI."""
    monkeypatch.chdir(tmp_path)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "logs", "name": "x"}}
    config = {"trainer": trainer | {"logger": logger}, "model": {"class_path": "CausalLM"}}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(config))

    def run(name, *flags):
        return cli.run([name, "--config=experiment.yaml", f"--model.backbone={decoder_folder()}", *flags])

    return run


class Watch(pl.Callback):
    """Calls a function after every batch."""

    def __init__(self, look):
        self.look = look

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.look(pl_module)


@pytest.fixture
def train(backbone_folder, mrpc_folder, tmp_path):
    """Fit a method on the tiny MRPC, which leaves checkpoints where a callback writes some; returns the trainer."""

    def run(method, *callbacks, lr=1e-2, ckpt_path=None, task=None, **options):
        pl.seed_everything(0)
        task = task or SequenceClassification(
            backbone_folder("bert"), method, optimizer=lambda params: torch.optim.AdamW(params, lr=lr)
        )
        saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
        trainer = pl.Trainer(
            **{"max_epochs": 2, "accelerator": "cpu", "default_root_dir": tmp_path, "log_every_n_steps": 1}
            | {"enable_progress_bar": False, "enable_model_summary": False, "callbacks": list(callbacks)}
            | {"enable_checkpointing": saves, "num_sanity_val_steps": 0}
            | {"gradient_clip_val": 1.0, "logger": pl.loggers.TensorBoardLogger(tmp_path)}
            | options
        )
        trainer.fit(task, GLUE("mrpc", mrpc_folder, batch_size=8), ckpt_path=ckpt_path)
        return trainer

    return run


def scalars(trainer):
    events = EventAccumulator(trainer.log_dir, size_guidance={"scalars": 0}).Reload()
    return {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
