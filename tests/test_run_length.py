"""Schedules that a run does not get through are refused before anything is computed."""

import lightning.pytorch as pl
import pytest
import torch
import transformers
from conftest import Watch
from lit_spectral.datamodules import GLUE

from lit_spectral import backbones
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA, Peft
from lit_spectral.tasks import SequenceClassification
from lit_spectral.tasks.optimization import build_schedule


def adalora(**fields):
    return Peft(config={"peft_type": "ADALORA", "init_r": 6, "target_r": 3} | fields)


def kept(task):
    """Ranks that are left, over the number of layers."""
    values = [p for name, p in task.model.named_parameters() if ".lora_E." in name]
    return sum(int((p != 0).sum()) for p in values) / len(values)


@pytest.fixture
def nothing_computed(monkeypatch):
    """The backbone is not even loaded."""

    def fail(*args, **kwargs):
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(backbones, "load_model", fail)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (adalora(total_step=1000), {}, "total_step 1000 is beyond the run's 16 optimizer steps.*give total_step 16"),
        (adalora(total_step=17), {}, "total_step 17 is beyond the run's 16"),
        (adalora(total_step=16), {"accumulate_grad_batches": 2}, "total_step 16 is beyond the run's 8"),
        (adalora(total_step=16), {"max_steps": 5}, "total_step 16 is beyond the run's 5"),
    ],
)
@pytest.mark.usefixtures("nothing_computed")
def test_adalora_beyond_the_run_is_refused(train, method, options, message):
    with pytest.raises(InputError, match=message):
        train(method, **options)


def test_an_allocation_that_comes_too_seldom_is_refused(train):
    with pytest.raises(InputError, match=r"one in deltaT, is too early.*smaller deltaT"):
        train(adalora(total_step=16, deltaT=10))


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"tinit": 4, "tfinal": 4}, {}),
        ({}, {"max_steps": 11}),
        ({"total_step": 12, "deltaT": 5, "tfinal": 1}, {}),
    ],
    ids=["alone", "with phases", "shorter", "given"],
)
def test_adalora_gets_to_its_target_by_the_runs_end(train, fields, options):
    first = []
    task = train(adalora(**fields), Watch(lambda task: first.append(kept(task))), **options).lightning_module
    assert first[0] == 6
    assert kept(task) == 3


def test_a_total_step_that_was_filled_in_is_in_the_checkpoint(train, tmp_path):
    trainer = train(adalora())
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    assert load(tmp_path / "task.ckpt").method.config["total_step"] == 16
    assert kept(load(tmp_path / "task.ckpt")) == 3


def test_a_second_fit_of_adalora_has_a_budget_of_its_own(train, backbone_folder):
    task = SequenceClassification(backbone_folder("bert"), adalora(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    train(None, task=task, max_epochs=1)
    assert kept(task) == 3
    ranks = []
    train(None, Watch(lambda task: ranks.append(kept(task))), task=task, max_epochs=3)
    assert task.method.config["total_step"] == 24
    assert max(ranks) > 3
    assert kept(task) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 17}, "warmup_steps 17 is above the run's 16 optimizer steps"),
        ({"warmup_steps": 500, "lr_scheduler": "cosine"}, "warmup_steps 500 is above the run's 16"),
        ({"warmup_steps": -1}, "warmup_steps must be finite and not negative, not -1"),
        ({"warmup_steps": 4, "lr_scheduler": "constant"}, "constant has none; give constant_with_warmup"),
        ({"lr_scheduler": "staircase"}, "lr_scheduler: there is no 'staircase'"),
        (
            {"lr_scheduler": "warmup_stable_decay"},
            "warmup_stable_decay: .*give --model.lr_scheduler_options",
        ),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "lr_scheduler: reduce_lr_on_plateau follows a metric"),
    ],
)
@pytest.mark.usefixtures("nothing_computed")
def test_a_learning_rate_that_would_not_get_to_its_value_is_refused(train, backbone_folder, settings, message):
    with pytest.raises(InputError, match=message):
        train(None, task=SequenceClassification(backbone_folder("bert"), LoRA(rank=4), **settings))


@pytest.mark.parametrize("warmup", [0, 1, 5, 0.3, 12])
def test_the_default_schedule_is_that_of_transformers(warmup):
    def rates(build):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        factor = build(optimizer).lr_lambdas[0]
        return [factor(step) for step in range(14)]  # also beyond the end

    whole = {0.3: 4}.get(warmup, warmup)  # of 12 steps, rounded up
    ours = rates(lambda optimizer: build_schedule("linear", warmup, optimizer, 12, {}))
    assert ours == rates(lambda optimizer: transformers.get_scheduler("linear", optimizer, whole, 12))


@pytest.mark.usefixtures("nothing_computed")
def test_a_run_without_an_end_is_refused(train):
    with pytest.raises(InputError, match=r"the run has no end.*give --trainer.max_steps"):
        train(LoRA(rank=4), max_epochs=-1)


@pytest.mark.parametrize("warmup", [16, 0.9, 1])
def test_a_warm_up_that_ends_with_the_run_is_none_to_refuse(train, backbone_folder, warmup):
    rates = []
    task = SequenceClassification(
        backbone_folder("bert"), LoRA(rank=4), warmup_steps=warmup, optimizer=lambda p: torch.optim.AdamW(p, lr=1.0)
    )

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    train(None, Look(), task=task)
    assert rates[1] == pytest.approx(1 / {16: 16, 0.9: 15, 1: 1}[warmup])


@pytest.mark.parametrize(("method", "warmup"), [(adalora(total_step=1000), 0), (adalora(), 0), (LoRA(rank=4), 500)])
def test_a_look_whether_it_runs_need_not_get_through_schedules(backbone_folder, mrpc_folder, method, warmup):
    task = SequenceClassification(backbone_folder("bert"), method, warmup_steps=warmup)
    trainer = pl.Trainer(fast_dev_run=2, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(task, GLUE("mrpc", mrpc_folder))
    assert trainer.global_step == 2
