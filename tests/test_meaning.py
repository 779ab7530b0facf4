"""Fits that would train nothing, or watch what isn't there."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA
from lit_spectral.tasks import SequenceClassification

STOP = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/acuracy"]
KEEP = "--trainer.callbacks={class_path: ModelCheckpoint, init_args: {%s}}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainer.max_steps=0"], r"trainer.max_steps: 0 leaves nothing to fit"),
        (["--trainer.max_epochs=0"], r"trainer.max_epochs: 0 leaves nothing to fit"),
        (["--trainer.limit_train_batches=0"], r"trainer.limit_train_batches: 0 leaves nothing to fit"),
        (["--trainer.limit_train_batches=0.0"], r"trainer.limit_train_batches: 0 leaves nothing to fit"),
        (
            ["--trainer.max_epochs=-1"],
            r"the run has no end over which the learning rate could go; give --trainer.max_steps",
        ),
        (["--model.optimizer.lr=0"], r"model.optimizer: a learning rate of 0.0 trains nothing"),
        (["--model.optimizer.lr=.inf"], r"model.optimizer: a learning rate of inf trains nothing"),
        (["--trainer.max_steps=1", "--model.warmup_steps=1"], r"warmup_steps: the learning rate is 0 in all"),
        (STOP, r"EarlyStopping: val/acuracy is not logged; there are .*val/accuracy, val/f1, val/loss"),
        ([KEEP % "monitor: val/acuracy"], r"ModelCheckpoint: val/acuracy is not logged"),
        ([KEEP % "filename: 'best-{val/acuracy:.2f}'"], r"ModelCheckpoint: val/acuracy is not logged"),
    ],
)
def test_a_fit_that_comes_to_nothing_is_refused_before_it_starts(fit, monkeypatch, tmp_path, flags, message):
    monkeypatch.setattr(
        "lit_spectral.tasks.SequenceClassification.training_step", lambda *args: pytest.fail("it was trained")
    )
    with pytest.raises(InputError, match=message):
        fit("lora_roberta_mrpc", *flags)
    assert not list(tmp_path.glob("runs/*/version_*"))


@pytest.mark.parametrize(("verb", "part"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_an_evaluation_of_nothing_is_refused(fit, verb, part):
    with pytest.raises(InputError, match=f"limit_{part}_batches: 0 leaves nothing to {verb}"):
        fit("lora_roberta_mrpc", f"--trainer.limit_{part}_batches=0", command=verb)


def test_a_method_that_leaves_nothing_to_train_is_refused(command, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "the cat", "reply": "sat"}\n' * 8)
    data = ["--data=PromptedText", "--data.path=.", "--data.prompt={question}", "--data.answer={reply}"]
    frozen = "--model.method.config={peft_type: LORA, r: 2, inference_mode: true}"
    with pytest.raises(InputError, match="Peft leaves nothing of this model to train"):
        command("fit", *data, "--data.validation_rows=2", "--model.method=Peft", frozen)


class Logs(pl.Callback):
    """Logs a metric of its own."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("mine", 1.0)


def test_metrics_of_others_are_let_pass_and_said(train, caplog):
    trainer = train(LoRA(), Logs(), ModelCheckpoint(monitor="mine"), max_epochs=1)
    assert trainer.checkpoint_callback.best_model_path
    assert sum("ModelCheckpoint: mine is not logged" in message for message in caplog.messages) == 1


def test_what_is_logged_may_be_watched(train):
    names = ["train/loss", "val/loss", "val/accuracy", "val/f1", "sigma_max"]
    watching = [EarlyStopping(name, check_on_train_epoch_end=True) for name in names]
    trainer = train(LoRA(), *watching, ModelCheckpoint(monitor="step", mode="max"), max_epochs=1)
    assert trainer.current_epoch == 1


@pytest.mark.parametrize("config", ["fclora_roberta_mrpc", "lora_roberta_stsb"])
def test_every_metric_that_is_logged_is_known(fit, config):
    done = fit(config, *(["--data.task=stsb"] if "stsb" in config else []))
    assert set(done.trainer.callback_metrics) == set(done.model.logged_metrics())


def test_it_is_said_that_a_run_was_at_its_end(fit, caplog):
    path = fit("lora_roberta_mrpc").trainer.checkpoint_callbacks[1].best_model_path
    assert not any("nothing was trained" in message for message in caplog.messages)
    fit("lora_roberta_mrpc", f"--ckpt_path={path}")
    assert sum("fit: nothing was trained" in message for message in caplog.messages) == 1


def test_a_fit_whose_every_step_was_skipped_has_not_trained(train, backbone_folder):
    class Broken(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.nan)

    task = SequenceClassification(backbone_folder("bert"), LoRA())
    with pytest.raises(InputError, match="all 8 steps were skipped"):
        train(None, Broken(), task=task, max_epochs=1)
    assert not task.is_trained
