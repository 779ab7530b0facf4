"""Decoders: the loss against independent computations, and fit, validate and reload through the command line."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
import transformers
import yaml
from conftest import WORDS
from crossing import crossed

from lit_spectral import cli
from lit_spectral.adapters import adapters
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import FullFineTuning, LoRA
from lit_spectral.tasks import CausalLM


@pytest.fixture(params=["llama", "gpt2"])
def task(request, decoder_folder):
    """A decoder with an adapter that changes nothing yet, in eval mode."""
    made = CausalLM(decoder_folder(request.param), LoRA(rank=2))
    made.configure_model()
    return made.eval()


@pytest.fixture
def batch():
    """Three rows of 12, 9 and 5 tokens; the last 4, 2 and 1 are scored."""
    ids = torch.randint(5, 64, (3, 12), generator=torch.Generator().manual_seed(1))
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (length, answer) in enumerate([(12, 4), (9, 2), (5, 1)]):
        mask[row, :length] = 1
        labels[row, length - answer : length] = ids[row, length - answer : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss(task, batch):
    with torch.no_grad():
        summed, count = task.summed_loss(batch)
    return float(summed / count)


def test_the_loss_is_that_of_transformers(task, batch):
    with torch.no_grad():
        assert loss(task, batch) == pytest.approx(float(task.model(**batch).loss), rel=1e-5)


def test_each_scored_token_counts_once(task, batch):
    assert int(task.summed_loss(batch)[1]) == 7


def test_the_first_token_of_a_row_is_not_scored(task, batch):
    assert int(task.summed_loss(batch | {"labels": batch["input_ids"]})[1]) == 3 * 11


def test_what_is_not_scored_does_not_enter_through_the_labels(task, batch):
    rows = [loss(task, {name: tensor[i : i + 1] for name, tensor in batch.items()}) for i in range(3)]
    assert loss(task, batch) == pytest.approx((4 * rows[0] + 2 * rows[1] + rows[2]) / 7, rel=1e-5)


def test_padding_on_the_right_changes_nothing(task, batch):
    padded = {
        name: torch.nn.functional.pad(tensor, (0, 5), value=-100 if name == "labels" else 0)
        for name, tensor in batch.items()
    }
    assert loss(task, padded) == pytest.approx(loss(task, batch), rel=1e-5)


def test_padding_on_the_left_changes_nothing_where_positions_are_relative(decoder_folder, batch):
    task = CausalLM(decoder_folder("llama"))
    task.configure_model()
    padded = {
        name: torch.nn.functional.pad(tensor, (5, 0), value=-100 if name == "labels" else 0)
        for name, tensor in batch.items()
    }
    assert loss(task.eval(), padded) == pytest.approx(loss(task, batch), rel=1e-5)


@pytest.mark.parametrize("takes_logits_to_keep", [True, False])
def test_positions_put_before_the_tokens_are_left_out(task, batch, takes_logits_to_keep):
    expected, plain = loss(task, batch), task.model.forward

    # What a learned prompt does to the logits: there are more of them, at the front.
    def longer(input_ids, attention_mask, logits_to_keep=0):
        logits = plain(input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep).logits
        front = torch.zeros(3, 0 if logits_to_keep else 4, 64)
        return transformers.modeling_outputs.CausalLMOutput(logits=torch.cat([front, logits], 1))

    def without(input_ids, attention_mask):
        return longer(input_ids, attention_mask)

    task.model.forward = longer if takes_logits_to_keep else without
    assert loss(task, batch) == pytest.approx(expected, rel=1e-5)


def test_a_batch_with_nothing_scored_gives_zero_and_a_gradient(task, batch):
    task.log = lambda *args, **kwargs: None
    step = task.training_step(batch | {"labels": torch.full_like(batch["labels"], -100)}, 0)
    step.backward()
    assert step.item() == 0


@pytest.mark.parametrize(("method", "trained"), [(LoRA(rank=2), False), (FullFineTuning(), True)])
def test_the_head_is_trained_only_with_everything(decoder_folder, method, trained):
    task = CausalLM(decoder_folder("llama"), method)
    task.configure_model()
    assert task.model.lm_head.weight.requires_grad == trained


def test_a_tied_head_is_neither_missing_nor_trained(decoder_folder):
    task = CausalLM(decoder_folder("gpt2"), LoRA(rank=2))
    task.configure_model()
    assert task.model.lm_head.weight is task.model.transformer.wte.weight
    assert not task.model.lm_head.weight.requires_grad


def test_an_encoder_is_refused(backbone_folder):
    with pytest.raises(InputError, match=r"is an encoder \(roberta\)"):
        CausalLM(backbone_folder("roberta")).configure_model()


def test_files_without_the_head_are_refused(decoder_folder, tmp_path):
    path = decoder_folder("llama")
    transformers.AutoModel.from_pretrained(path).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no language-model head \(lm_head.weight\)"):
        CausalLM(str(tmp_path)).configure_model()


@pytest.fixture
def folder(tmp_path):
    """Forty questions whose answers are of 1 to 8 words, and a text; the config that trains on them."""
    generator = torch.Generator().manual_seed(0)

    def words(count):
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator))

    rows = [{"question": words(3 + i % 5), "number": i, "reply": words(1 + i % 8)} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text("\n".join(words(12) for _ in range(30)))
    config = {
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(tmp_path / "checkpoints"), "filename": "last", "monitor": "val/loss"},
                }
            ],
        },
        "model": {"class_path": "CausalLM", "init_args": {"method": {"class_path": "LoRA", "init_args": {"rank": 2}}}},
        "data": {
            "class_path": "PromptedText",
            "init_args": {
                "path": str(tmp_path),
                "prompt": "question {number}: {question}\n",
                "answer": "{reply}",
                "validation_rows": 11,
                "batch_size": 4,
            },
        },
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def command(folder, decoder_folder, monkeypatch):
    """Run a subcommand of the config on tiny Llama; returns the LightningCLI."""
    monkeypatch.chdir(folder)

    def run(name, *flags, architecture="llama"):
        backbone = f"--model.backbone={decoder_folder(architecture)}"
        return cli.run([name, f"--config={folder / 'experiment.yaml'}", backbone, *flags])

    return run


def direct(model, rows):
    """Mean loss a token over rows of ids and labels, one row at a time, in float64."""
    model, summed, count = model.double(), 0.0, 0
    for row in rows:
        with torch.no_grad():
            logs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        scored = [i for i, label in enumerate(row["labels"]) if label != -100 and i > 0]
        summed -= sum(float(logs[i - 1, row["labels"][i]]) for i in scored)
        count += len(scored)
    return summed / count


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_validation_loss_and_perplexity_are_over_all_tokens_of_the_set(command, decoder_folder, architecture):
    done = command("validate", "--data.eval_batch_size=4", architecture=architecture)
    model = transformers.AutoModelForCausalLM.from_pretrained(decoder_folder(architecture), dtype=torch.float32)
    expected = direct(model.eval(), done.datamodule.splits["val"])
    metrics = done.trainer.callback_metrics
    assert float(metrics["val/loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["val/perplexity"]) == pytest.approx(math.exp(expected), rel=1e-4)


def test_perplexity_of_a_text_is_that_of_its_windows(command, folder, decoder_folder):
    flags = ["--data=TextWindows", f"--data.path={folder / 'text.txt'}", "--data.max_length=16", "--data.limit=10"]
    done = command("validate", *flags)
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder_folder())
    ids = tokenizer((folder / "text.txt").read_text(), add_special_tokens=False)["input_ids"]
    windows = [[tokenizer.bos_token_id, *ids[start : start + 15]] for start in range(0, 150, 15)]
    model = transformers.AutoModelForCausalLM.from_pretrained(decoder_folder(), dtype=torch.float32).eval()
    expected = direct(model, [{"input_ids": window, "labels": window} for window in windows])
    assert float(done.trainer.callback_metrics["val/perplexity"]) == pytest.approx(math.exp(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("method", "architecture"),
    crossed(["LoRA", "PiSSA", "MiLoRA", "SORSA", "FCLoRA", "FullFineTuning"], ["llama", "gpt2"]),
)
def test_fit_trains_the_adapter_and_logs(command, method, architecture):
    flags = [f"--model.method={method}", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.01"]
    done = command("fit", *flags, architecture=architecture)
    assert {"val/loss", "val/perplexity"} <= set(done.trainer.callback_metrics) == set(done.model.logged_metrics())
    # Not of all of them: where the loss pulls every σ of FCLoRA below 0, they stay there.
    assert any(bool(adapter.delta_weight().any()) for adapter in adapters(done.model.model))


def test_a_checkpoint_rebuilds_the_task(command, folder, batch):
    done = command("fit")
    again = load(folder / "checkpoints" / "last.ckpt")
    assert isinstance(again, CausalLM)
    assert loss(again, batch) == loss(done.model.eval(), batch)


def test_windows_are_trained_on_but_for_those_validated_on(command, folder):
    flags = ["--data=TextWindows", f"--data.path={folder / 'text.txt'}", "--data.max_length=16"]
    whole = command("validate", *flags).datamodule.splits["val"]["input_ids"]
    done = command("fit", *flags, "--data.validation_fraction=0.25")
    train, held = (done.datamodule.splits[name]["input_ids"] for name in ("train", "val"))
    assert len(held) == math.ceil(len(whole) / 4)
    assert sorted([*train, *held]) == sorted(whole)
    assert "val/perplexity" in done.trainer.callback_metrics


def test_fit_on_windows_that_are_all_validated_on_is_refused(command, folder):
    with pytest.raises(InputError, match="1 leaves nothing to train on; use validate, or give less"):
        command("fit", "--data=TextWindows", f"--data.path={folder / 'text.txt'}")


def test_a_test_split_is_logged_under_its_name(command, folder):
    os.link(folder / "train.jsonl", folder / "test.jsonl")
    assert {"test/loss", "test/perplexity"} == set(command("test").trainer.callback_metrics)


@pytest.mark.parametrize("joined", [True, False])
def test_templates_given_as_flags_are_no_yaml(command, joined):
    given = {"--data.prompt": "question: {question}\n", "--data.answer": "{reply}"}
    pairs = [[f"{flag}={text}"] if joined else [flag, text] for flag, text in given.items()]
    done = command("validate", *pairs[0], *pairs[1])
    assert done.datamodule.templates == {"prompt": "question: {question}\n", "input": "", "answer": "{reply}"}


@pytest.mark.slow
def test_processes_together_count_every_token_once(command, folder, decoder_folder):
    """By DDP; test_sharding has the metrics of both strategies, in Python."""
    # 11 rows in batches of 4 on two processes: 6 and 5 rows, of unlike numbers of tokens.
    flags = [f"--model.backbone={decoder_folder()}", "--trainer.strategy=ddp", "--trainer.devices=2"]
    script = (
        "import sys; from lit_spectral import cli; trainer = cli.run(sys.argv[1:]).trainer\n"
        "assert trainer.world_size == 2\n"
        "open(f'rank{trainer.global_rank}', 'w').write(str(float(trainer.callback_metrics['val/loss'])))\n"
    )
    (folder / "measure.py").write_text(script)
    subprocess.run(
        [sys.executable, "measure.py", "validate", "--config=experiment.yaml", *flags],
        cwd=folder, check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    expected = float(command("validate").trainer.callback_metrics["val/loss"])
    assert [float((folder / f"rank{rank}").read_text()) for rank in (0, 1)] == pytest.approx([expected] * 2, rel=1e-6)
