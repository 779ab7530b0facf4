"""What a call leaves on a model, a task, a method or data must not make the next call wrong."""

import copy
import json

import lightning.pytorch as pl
import pytest
import torch
from checkpoint_ways import damage
from conftest import Watch, scalars
from lit_spectral.callbacks import RetentionMonitor, RunRecord
from lit_spectral.datamodules import GLUE

from lit_spectral.adapters import adapters, detach, fold, named_changes, trained_state, unfold
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, HiRA, LoRA, Peft
from lit_spectral.retention.base_model import base_model
from lit_spectral.tasks import MaskedLM, SequenceClassification

DORA = Peft(config={"peft_type": "LORA", "r": 4})
FOLDING = {"LoRA": LoRA(rank=4), "HiRA": HiRA(rank=4), "peft's": DORA}
TOKENS = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


@pytest.fixture
def trained(train, backbone_folder):
    """A task after a few steps, which is folded."""

    def run(method, folded=True):
        task = train(method, max_steps=2, lr=0.1).lightning_module.eval()
        if folded:
            fold(task.model)
        return task

    return run


@pytest.mark.parametrize("method", FOLDING.values(), ids=FOLDING)
def test_a_folded_model_is_not_trained(train, trained, method):
    task = trained(method)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    with pytest.raises(InputError, match="fit: the changes are folded into the weights; unfold the model first"):
        train(None, task=task)
    assert all(torch.equal(before[name], tensor) for name, tensor in task.state_dict().items())
    unfold(task.model)
    factors = {name: tensor.clone() for name, tensor in trained_state(task.model).items()}
    train(None, task=task, max_steps=2)
    assert not all(torch.equal(factors[name], tensor) for name, tensor in trained_state(task.model).items())


@pytest.mark.parametrize("method", FOLDING.values(), ids=FOLDING)
def test_a_folded_model_is_not_loaded_into(train, trained, tmp_path, backbone_folder, mrpc_folder, method):
    train(method, max_steps=1).save_checkpoint(tmp_path / "other.ckpt")
    task = trained(method)
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "enable_progress_bar": False}
    data = GLUE("mrpc", mrpc_folder)
    with pytest.raises(InputError, match="a checkpoint: the changes are folded"):
        pl.Trainer(**options).validate(task, data, ckpt_path=tmp_path / "other.ckpt")
    pl.Trainer(**options).validate(task, data, verbose=False)  # as it is, it may be


@pytest.mark.parametrize("method", FOLDING.values(), ids=FOLDING)
def test_a_folded_models_checkpoint_is_that_of_the_unfolded_one(train, tmp_path, method):
    trainer = train(method, max_steps=2, lr=0.1)
    task = trainer.lightning_module.eval()
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    fold(task.model)
    trainer.save_checkpoint(tmp_path / "folded.ckpt")
    first, second = (
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["state_dict"] for name in ("plain", "folded")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "folded.ckpt")(TOKENS), task(TOKENS))


def test_a_folded_state_dict_is_not_taken_for_a_plain_one(trained, tmp_path, backbone_folder):
    torch.save(trained(LoRA(rank=4)).state_dict(), tmp_path / "folded.pt")
    state = torch.load(tmp_path / "folded.pt", weights_only=True)
    other = SequenceClassification(backbone_folder("bert"), LoRA(rank=4), num_labels=2)
    other.configure_model()
    with pytest.raises(InputError, match="the model that these weights are of is folded"):
        other.load_state_dict(state)
    fold(other.model)
    with pytest.raises(InputError, match="this model is folded"):
        other.load_state_dict({})


@pytest.mark.parametrize("method", FOLDING.values(), ids=FOLDING)
def test_folding_and_unfolding_twice_is_once(trained, method):
    task = trained(method, folded=False)
    with torch.no_grad():
        expected = task(TOKENS)
        fold(task.model)
        once = task(TOKENS)
        fold(task.model)
        assert torch.equal(task(TOKENS), once)
        torch.testing.assert_close(once, expected)
        unfold(task.model)
        unfold(task.model)
        torch.testing.assert_close(task(TOKENS), expected)


@pytest.mark.parametrize("method", FOLDING.values(), ids=FOLDING)
def test_a_folded_change_is_as_large_as_it_was(trained, method):
    task = trained(method, folded=False)
    before = {name: change.delta_weight() for name, change in named_changes(task.model).items()}
    fold(task.model)
    for name, change in named_changes(task.model).items():
        torch.testing.assert_close(change.delta_weight(), before[name], rtol=1e-4, atol=1e-6)
        assert change.delta_weight().norm() > 1e-3
        assert change.folded


@pytest.mark.parametrize("method", FOLDING.values(), ids=FOLDING)
def test_a_folded_models_backbone_is_not_measured(trained, method):
    task = trained(method)
    with pytest.raises(InputError, match="retention: the changes are folded"), base_model(task, {}):
        pass
    assert all(change.folded for change in named_changes(task.model).values())


@pytest.mark.parametrize("method", FOLDING.values(), ids=FOLDING)
def test_a_model_without_its_adapters_is_not_trained(train, trained, method):
    task = trained(method, folded=False)
    detach(task.model)
    with pytest.raises(InputError, match="adapters are not those that its method put there, as after detach"):
        train(None, task=task)


def test_one_method_object_serves_two_tasks(backbone_folder):
    method = Peft(config={"peft_type": "ADALORA", "init_r": 6, "target_r": 3, "total_step": 9})
    tasks = [SequenceClassification(backbone_folder("bert"), method, num_labels=2) for _ in range(2)]
    for task in tasks:
        task.configure_model()
    for task in tasks:
        assert task.method.penalty().grad_fn is not None
        assert task.method._tuner.model is task.model
    tasks[0].method.head_lr = 7.0
    assert tasks[1].method.head_lr == method.head_lr == 1.0


def test_a_loaded_task_is_trained_with_dropout_and_with_the_seed_that_is_given(train, backbone_folder, tmp_path):
    train(LoRA(rank=4), max_steps=3).save_checkpoint(tmp_path / "task.ckpt")
    task = load(tmp_path / "task.ckpt")
    task._seed = 7  # as of another run
    train(None, Watch(lambda task: modes.append(task.training and task.model.training)), task=task, max_steps=1)
    assert modes.pop()
    assert task._seed == 0


modes: list[bool] = []


def test_skipped_steps_are_those_of_the_fit(train, backbone_folder):
    class Poison(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(float("nan"))

    task = SequenceClassification(backbone_folder("bert"), LoRA(rank=4))
    with pytest.raises(InputError, match="all 2 steps were skipped"):
        train(None, Poison(), task=task, max_steps=2)
    assert task.skipped_steps == 2
    trainer = train(None, task=task, max_steps=2)
    assert scalars(trainer)["train/skipped_steps"] == [(0, 0.0), (1, 0.0)]


def test_a_fit_that_failed_before_its_first_batch_leaves_no_seed(train, backbone_folder, tmp_path):
    train(LoRA(rank=4), max_steps=3).save_checkpoint(tmp_path / "task.ckpt")
    damage(tmp_path / "task.ckpt", tmp_path / "task.ckpt", lambda content: content["lit_spectral"].update(seed=7))
    task = SequenceClassification(backbone_folder("bert"), LoRA(rank=4))

    class Fail(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(None, Fail(), task=task, ckpt_path=tmp_path / "task.ckpt")
    train(None, task=task, max_steps=1)
    assert task._seed == 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_evaluation_that_broke_off_is_forgotten(train, backbone_folder, precision):
    """As a copy of the task, which was never evaluated, a second fit goes."""

    class Break(pl.Callback):
        def on_validation_batch_end(self, trainer, *args):
            if not trainer.sanity_checking:
                raise ZeroDivisionError

    task = SequenceClassification(backbone_folder("bert"), FCLoRA(rank=4))
    with pytest.raises(ZeroDivisionError):
        train(None, Break(), task=task, max_epochs=1, precision=precision)
    assert not task.model.training
    assert {adapter.weight.dtype for adapter in adapters(task.model)} == {torch.float32}
    fresh = copy.deepcopy(task).train()
    runs = [train(None, task=each, max_epochs=1, precision=precision) for each in (task, fresh)]
    assert all(
        torch.equal(a, b) for a, b in zip(*(trained_state(t.model).values() for t in (task, fresh)), strict=True)
    )
    accuracies = [scalars(run)["val/accuracy"] for run in runs]
    assert accuracies[0] == accuracies[1]


def test_monitors_measure_a_second_fit_as_the_first(train, backbone_folder, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and then the dog ran\n" * 4)
    monitor = RetentionMonitor({"words": str(tmp_path / "text.txt")}, every_n_epochs=0, every_n_steps=2, max_length=16)
    for _ in range(2):
        trainer = train(LoRA(rank=2), monitor, max_steps=2)
        assert [step for step, _ in scalars(trainer)["retention/words/accuracy"]] == [0, 1]
        monitor._last_step = 0  # as after a fit that failed at its start


def test_a_record_is_of_the_fit_and_not_of_what_comes_after(train, mrpc_folder, tmp_path):
    file = tmp_path / "record.json"
    trainer = train(LoRA(rank=2), RunRecord(str(file)), max_epochs=1)
    before = json.loads(file.read_text())
    trainer.test(trainer.lightning_module, GLUE("mrpc", mrpc_folder), verbose=False)
    assert json.loads(file.read_text()) == before


def test_data_is_read_anew_for_a_model_of_another_tokenizer(backbone_folder, decoder_folder, mrpc_folder):
    data, rows = GLUE("mrpc", mrpc_folder), []
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    for backbone in (backbone_folder("bert"), decoder_folder("llama")):
        trainer = pl.Trainer(**options, max_steps=1, enable_model_summary=False)
        trainer.fit(SequenceClassification(backbone, LoRA(rank=2)), data)
        fresh = GLUE("mrpc", mrpc_folder, tokenizer=backbone)
        fresh.setup("fit")
        rows.append(data.splits["train"][0]["input_ids"])
        assert rows[-1] == fresh.splits["train"][0]["input_ids"]
    assert rows[0] != rows[1]


def test_base_weights_come_back_when_an_evaluation_of_the_backbone_breaks_off(backbone_folder):
    from lit_spectral.methods import FullFineTuning
    from lit_spectral.retention.base_model import original_weights

    task = MaskedLM(backbone_folder("bert"), FullFineTuning())
    task.configure_model()
    originals = original_weights(task)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in task.model.parameters()]
    with pytest.raises(RuntimeError), base_model(task, {**originals, list(originals)[-1]: torch.zeros(3, 5, 7)}):
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))
