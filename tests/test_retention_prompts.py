"""What is forgotten on the prompts of a decoder's own rows."""

import json

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lit_spectral.callbacks import RetentionMonitor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from lit_spectral import cli
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA
from lit_spectral.retention import Retention
from lit_spectral.retention.texts import first_rows
from lit_spectral.tasks import CausalLM, MaskedLM

ROWS = [("the cat sat", "on a mat"), ("a dog", "ran"), ("the old bird and the cat", "sang"), ("a bird", "flew to it")]
MONITOR = "--trainer.callbacks+=lit_spectral.callbacks.RetentionMonitor"


@pytest.fixture
def asked(command, tmp_path):
    """Train on questions, of which all are validated on too; returns the LightningCLI and its RetentionMonitor."""

    def run(*flags):
        lines = [json.dumps({"q": question, "a": answer}) for question, answer in ROWS]
        for split in ("train", "validation"):
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        data = ["--data=PromptedText", f"--data.path={tmp_path}", "--data.prompt={q} ", "--data.answer={a}"]
        data.append("--data.batch_size=1")
        learns = ["--model.method=LoRA", "--model.optimizer=AdamW", "--model.optimizer.lr=0.05"]
        done = command("fit", *learns, *data, MONITOR, "--trainer.callbacks.corpora=[prompts]", *flags)
        return done, next(c for c in done.trainer.callbacks if isinstance(c, RetentionMonitor))

    return run


@pytest.mark.parametrize("limit", [4, 3])
def test_it_is_the_divergence_of_every_token_of_a_prompt_from_the_backbone(limit, asked, decoder_folder):
    done, monitor = asked("--trainer.callbacks.batch_size=2", f"--trainer.callbacks.limit={limit}")
    base, divergence, tokens = AutoModelForCausalLM.from_pretrained(decoder_folder()).eval(), 0.0, 0
    adapted = done.model.model.eval()
    for row in done.datamodule.splits["val"].select(range(limit)):
        prompt = sum(label == -100 for label in row["labels"])
        ids = torch.tensor([row["input_ids"][:prompt]])
        with torch.no_grad():
            ours, theirs = (model(ids).logits[0, :-1].double().log_softmax(-1) for model in (adapted, base))
        divergence += float((theirs.exp() * (theirs - ours)).sum())
        tokens += prompt - 1
    found = monitor.latest["prompts/forgetting_loss"] - monitor.latest["prompts/base_entropy"]
    assert divergence / tokens > 1e-3
    assert found == pytest.approx(divergence / tokens, rel=1e-3)


def test_the_task_is_validated_as_without_it(asked):
    with_prompts, _ = asked("--seed_everything=1", "--trainer.callbacks.batch_size=3")
    sizes = [len(batch["input_ids"]) for batch in with_prompts.datamodule.val_dataloader()[0]]
    assert sizes == [1, 1, 1, 1]


def test_sweeps_measure_it_on_the_data_that_they_validate_on(asked, tmp_path):
    _, monitor = asked("--trainer.callbacks+=ModelCheckpoint")
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    sweep = ["--validate", "--scale=0,1", "--output_path=sweep.json"]
    cli.main(["retain", "--checkpoint", str(checkpoint), "--corpora", "prompts", *sweep])
    rows = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["rows"]
    measured = [{name: value for name, value in row["measured"].items() if "prompts" in name} for row in rows]
    _, unchanged, trained = measured
    assert trained == {f"retention/{name}": pytest.approx(value, rel=1e-5) for name, value in monitor.latest.items()}
    assert unchanged["retention/prompts/forgetting_loss"] == pytest.approx(unchanged["retention/prompts/base_entropy"])


def test_rows_that_are_trained_on_whole_have_none(asked):
    with pytest.raises(InputError, match="retention: the rows have no prompts apart from what is trained on"):
        asked("--data.loss_on=all")


class Loader(LightningDataModule):
    """A data module of a user's own, whose loader is no list, unless it is asked to be something else."""

    def __init__(self, given=lambda loader: loader):
        super().__init__()
        self.given = given

    def val_dataloader(self):
        return self.given(DataLoader([{"input_ids": torch.tensor([row] * 3)} for row in range(10)], batch_size=4))


@pytest.mark.parametrize(("limit", "sizes"), [(None, [4, 4, 2]), (8, [4, 4]), (5, [4, 1])])
def test_a_data_module_that_has_one_loader_gives_its_own_batches(limit, sizes):
    assert [len(batch["input_ids"]) for batch in first_rows(Loader(), 3, limit)] == sizes


def test_the_first_of_loaders_by_name_is_taken():
    named = Loader(lambda loader: {"short": loader, "long": None})
    assert [len(batch["input_ids"]) for batch in first_rows(named, 3, 8)] == [4, 4]


@pytest.mark.parametrize(
    "data", [LightningDataModule(), Loader(lambda _: []), Loader(lambda _: None)], ids=["without", "empty", "null"]
)
def test_data_without_a_validation_set_is_told(data):
    with pytest.raises(InputError, match=r"prompts are of validation rows, and \w+ has none; give a text"):
        first_rows(data, 3, None)


@pytest.mark.parametrize(
    ("kind", "architecture", "said"),
    [
        (MaskedLM, "bert", "retention: prompts are a decoder's, apart from its answers"),
        (CausalLM, "llama", "retention: prompts are of the data that a task is validated on, and there is none here"),
    ],
)
def test_what_has_none_is_told(kind, architecture, said, backbone_folder):
    task = kind(backbone_folder(architecture), LoRA(rank=2))
    task.configure_model()
    with pytest.raises(InputError, match=said):
        Retention(["prompts"]).prepare(task)
