"""A resumed run: what is given acts, and what can't is refused before anything is computed."""

import functools
import json
import math
import shutil

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lit_spectral.datamodules import GLUE
from resuming import Rates, Save, adamw, run, warnings_of, weights  # noqa: F401 (fixtures)

from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, HiPLoRA, LoRA, LoRAPlus

GIVEN = {"lr": 3e-3, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.1}


def test_the_optimizer_that_is_given_is_the_one_that_steps(run, tmp_path):
    """As if its settings were changed by hand in a run that was never interrupted."""
    path = tmp_path / "half.ckpt"

    class ByHand(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            if trainer.global_step == 8:
                for group in trainer.optimizers[0].param_groups:
                    decay = {"weight_decay": 0.0} if "vectors" in group["name"] else {}
                    group.update(GIVEN | decay | {"lr": 3e-3 * group["lr_ratio"] * 0.5})
                scheduler = trainer.lr_scheduler_configs[0].scheduler
                scheduler.base_lrs = [3e-3 * group["lr_ratio"] for group in trainer.optimizers[0].param_groups]

    expected = weights(run(FCLoRA(rank=4), Save(path), ByHand()))
    rates = Rates()
    found = weights(run(FCLoRA(rank=4), rates, optimizer=adamw(**GIVEN), path=path))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert rates.of("rest", "weight_decay")[0] == 0.1
    assert rates.of("rest-vectors", "weight_decay")[0] == 0.0
    assert rates.of("rest") == pytest.approx([3e-3 * (16 - step) / 16 for step in range(8, 16)])


@pytest.mark.parametrize(
    ("first", "second", "ratios"),
    [
        (LoRAPlus(rank=4), LoRAPlus(rank=4, lr_ratio=4), {"left": 4, "rest": 1}),
        (LoRAPlus(rank=4), LoRAPlus(rank=4, lr_ratio=1), {"left": 1, "rest": 1}),
        (LoRA(rank=4), LoRA(rank=4, head_lr=5), {"head": 5, "head-vectors": 5, "rest": 1}),
        (
            FCLoRA(rank=4, sigma_lr=1, factor_lr=1, head_lr=1),
            FCLoRA(rank=4, sigma_lr=30, factor_lr=3, head_lr=7),
            {"sigma-vectors": 30, "u": 3, "v": 3, "head": 7},
        ),
        (
            HiPLoRA(rank=4, principal_rank=6),
            HiPLoRA(rank=4, principal_rank=6, delta_lr=9, head_lr=1),
            {"delta-vectors": 9, "head": 1},
        ),
    ],
    ids=["lr_ratio", "lr_ratio as the rest's", "head_lr", "FCLoRA", "HiPLoRA"],
)
@pytest.mark.slow
def test_a_ratio_that_is_given_acts(run, tmp_path, first, second, ratios):
    path, rates = tmp_path / "half.ckpt", Rates()
    run(first, Save(path), max_epochs=2)
    run(second, rates, path=path)
    for name, ratio in ratios.items():
        assert rates.of(name) == pytest.approx([1e-2 * ratio * (16 - step) / 16 for step in range(8, 16)]), name


@pytest.mark.parametrize(
    "settings", [{}, {"lr_scheduler": "polynomial", "warmup_steps": 0.25}], ids=["linear", "other"]
)
def test_a_run_resumed_with_the_same_settings_has_the_same_rates_to_the_bit(run, tmp_path, settings):
    path, whole, rest = tmp_path / "half.ckpt", Rates(), Rates()
    run(FCLoRA(rank=4), Save(path), whole, **settings)
    run(FCLoRA(rank=4), rest, path=path, **settings)
    assert rest.seen == whole.seen[8:]


@pytest.mark.parametrize(
    ("given", "factor"),
    [
        ({"lr_scheduler": "cosine"}, lambda step: 0.5 * (1 + math.cos(math.pi * step / 16))),
        ({"lr_scheduler": "constant"}, lambda step: 1.0),
        ({"warmup_steps": 12}, lambda step: step / 12 if step < 12 else (16 - step) / 4),
        ({"warmup_steps": 0.75}, lambda step: step / 12 if step < 12 else (16 - step) / 4),
        ({"max_epochs": 4}, lambda step: (32 - step) / 32),
        ({"max_epochs": -1, "max_steps": 10}, lambda step: (10 - step) / 10),
        ({"accumulate_grad_batches": 4}, lambda step: (10 - step) / 10),  # 8 taken, 2 left
        ({"limit_train_batches": 4}, lambda step: (12 - step) / 12),
    ],
    ids=["name", "without decay", "warm-up", "fraction", "epochs", "steps", "accumulation", "batches"],
)
@pytest.mark.slow
def test_the_schedule_that_is_given_acts_over_the_whole_run(run, tmp_path, given, factor):
    path, rates = tmp_path / "half.ckpt", Rates()

    class AtEnd(Save):
        def on_train_batch_end(self, *args):
            pass

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(self.path)

    run(LoRA(rank=4), AtEnd(path))
    trainer = run(LoRA(rank=4), rates, path=path, **given)
    accumulated = given.get("accumulate_grad_batches", 1)
    steps = range(8, trainer.global_step)
    assert rates.of("rest")[::accumulated] == pytest.approx([1e-2 * factor(step) for step in steps])
    assert len(steps) > 1


def test_inside_an_epoch_the_steps_that_are_left_are_counted(run, tmp_path):
    path, rates = tmp_path / "some.ckpt", Rates()
    run(LoRA(rank=4), Save(path, step=4))
    trainer = run(LoRA(rank=4), rates, path=path, accumulate_grad_batches=2)
    assert trainer.global_step == 4 + 2 + 4
    assert rates.of("rest")[::2] == pytest.approx([1e-2 * (10 - step) / 10 for step in range(4, 10)])


class AdamW(torch.optim.SGD):
    """Another optimizer of that name."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (adamw(), functools.partial(torch.optim.SGD, lr=0.1), "is AdamW, whose state SGD .*--model.optimizer AdamW"),
        (lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.AdamW(p), "is SGD, whose state AdamW can't"),
        (adamw(), AdamW, r"is AdamW, whose state test_resume\.AdamW can't"),
        (adamw(), adamw(amsgrad=True), "optimizer.amsgrad: False, here True"),
        (
            functools.partial(torch.optim.RMSprop, momentum=0.0),
            functools.partial(torch.optim.RMSprop, momentum=0.9),
            "optimizer.momentum: 0.0, here 0.9",
        ),
        (
            functools.partial(torch.optim.Adagrad, initial_accumulator_value=0.1),
            functools.partial(torch.optim.Adagrad, initial_accumulator_value=0.2),
            "initial_accumulator_value: 0.1, here 0.2",
        ),
    ],
    ids=["SGD", "lambda", "namesake", "amsgrad", "momentum", "start of the sum"],
)
@pytest.mark.slow
def test_an_optimizer_that_can_not_go_on_with_the_state_is_refused(run, tmp_path, first, second, message):
    path, rates = tmp_path / "half.ckpt", Rates()
    run(LoRA(rank=4), Save(path), optimizer=first, max_steps=8)
    with pytest.raises(InputError, match=message):
        run(LoRA(rank=4), rates, optimizer=second, path=path)
    assert not rates.seen


def test_another_momentum_acts(run, tmp_path):
    path, rates = tmp_path / "half.ckpt", Rates()
    run(LoRA(rank=4), Save(path), optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    run(LoRA(rank=4), rates, optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.5), path=path)
    assert set(rates.of("rest", "momentum")) == {0.5}


def random_states(run, path, seed):
    """Random states at the forward passes of a run that is resumed with a seed."""
    states = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.model.register_forward_pre_hook(lambda *args: states.append(torch.get_rng_state()))

    run(LoRA(rank=4), Look(), path=path, seed=seed, limit_val_batches=0)
    return states


def test_another_seed_acts_and_the_same_one_goes_on(run, tmp_path, caplog):
    path = tmp_path / "half.ckpt"
    run(LoRA(rank=4), Save(path), limit_val_batches=0)
    whole = random_states(run, None, 0)
    same, other, again = (random_states(run, path, seed) for seed in (0, 7, 7))
    assert torch.equal(same[0], whole[8])
    assert not torch.equal(other[0], whole[8])
    assert torch.equal(other[0], again[0])
    assert [line for line in warnings_of(caplog) if "seed_everything: 0, here 7" in line] == warnings_of(caplog)


def test_one_line_names_all_that_differs(run, mrpc_folder, tmp_path, caplog):
    path = tmp_path / "half.ckpt"
    run(LoRAPlus(rank=4), Save(path))
    caplog.clear()
    data = GLUE("mrpc", mrpc_folder, batch_size=4, max_length=12, seed=3)
    given = {"lr_scheduler": "cosine", "warmup_steps": 2, "gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    run(LoRAPlus(rank=4, lr_ratio=4, dropout=0.2), optimizer=adamw(**GIVEN), data=data, path=path, seed=7, **given)
    (line,) = warnings_of(caplog)
    for part in (
        "lr_ratio: 16.0, here 4",
        "dropout: 0.0, here 0.2",
        "optimizer.lr: 0.01, here 0.003",
        "optimizer.betas: (0.9, 0.999), here (0.8, 0.99)",
        "optimizer.eps: 1e-08, here 0.0001",
        "optimizer.weight_decay: 0.0, here 0.1",
        "lr_scheduler: linear, here cosine",
        "warmup_steps: 0, here 2",
        "seed_everything: 0, here 7",
        "data.batch_size: 8, here 4",
        "data.max_length: 256, here 12",
        "data.seed: 0, here 3",
        "trainer.accumulate_grad_batches: 1, here 2",
        "trainer.gradient_clip_val: None, here 0.5",
    ):
        assert part in line
    assert "rank" not in line
    assert "\n" not in line


def test_the_same_settings_are_no_news(run, tmp_path, caplog):
    path = tmp_path / "half.ckpt"
    run(FCLoRA(rank=4), Save(path), EarlyStopping("val/loss", patience=9))
    run(FCLoRA(rank=4), EarlyStopping("val/loss", patience=9), path=path)
    assert warnings_of(caplog) == []


def test_other_rows_under_the_same_path_are_named(run, mrpc_folder, tmp_path, caplog):
    folder = tmp_path / "data"
    shutil.copytree(mrpc_folder, folder)
    run(LoRA(rank=4), Save(tmp_path / "half.ckpt"), data=GLUE("mrpc", str(folder), batch_size=8))
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows[0]["label"] = 1 - rows[0]["label"]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(LoRA(rank=4), data=GLUE("mrpc", str(folder), batch_size=8), path=tmp_path / "half.ckpt")
    (line,) = warnings_of(caplog)
    assert "training rows: 64 (" in line


def test_a_batch_size_that_is_given_acts(run, mrpc_folder, tmp_path):
    path, sizes = tmp_path / "half.ckpt", []

    class Sizes(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            sizes.append(len(batch["labels"]))

    run(LoRA(rank=4), Save(path))
    run(LoRA(rank=4), Sizes(), data=GLUE("mrpc", mrpc_folder, batch_size=16), path=path)
    assert set(sizes) == {16}


def test_the_patience_that_is_given_acts(run, tmp_path):
    path, stop = tmp_path / "half.ckpt", EarlyStopping("val/loss", patience=7)
    run(LoRA(rank=4), Save(path), EarlyStopping("val/loss", patience=3))
    run(LoRA(rank=4), stop, path=path)
    assert stop.patience == 7


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: saved.pop("lit_spectral"), "was not written by lit-spectral"),
        (
            lambda saved: saved["lit_spectral"].pop("settings"),
            "by an earlier version of lit-spectral, without settings",
        ),
        (lambda saved: saved.pop("optimizer_states"), "without the optimizer's state"),
        (lambda saved: saved.update(optimizer_states=[]), "without the optimizer's state"),
        (lambda saved: saved["lit_spectral"]["settings"].update(parameters="?"), "another order of them"),
        (
            lambda saved: saved["loops"]["fit_loop"]["epoch_progress"]["current"].update(processed=5),
            "max_epochs 2 is bel",
        ),
    ],
)
def test_a_checkpoint_that_no_run_can_go_on_from_is_refused(run, tmp_path, damage, message):
    path, rates = tmp_path / "half.ckpt", Rates()
    run(LoRA(rank=4), Save(path))
    content = torch.load(path, weights_only=True)
    damage(content)
    torch.save(content, path)
    with pytest.raises(InputError, match=message):
        run(LoRA(rank=4), rates, path=path)
    assert not rates.seen


def test_a_run_that_would_end_before_it_goes_on_is_refused(run, tmp_path):
    run(LoRA(rank=4)).save_checkpoint(tmp_path / "done.ckpt")
    with pytest.raises(InputError, match=r"trainer\.max_epochs 1 is below the 2 that the checkpoint has behind it"):
        run(LoRA(rank=4), path=tmp_path / "done.ckpt", max_epochs=1)
    with pytest.raises(InputError, match=r"trainer\.max_steps 9 is below the 16"):
        run(LoRA(rank=4), path=tmp_path / "done.ckpt", max_steps=9)
    run(LoRA(rank=4), path=tmp_path / "done.ckpt")  # it has come to its end, and may be asked again


def test_load_names_what_an_old_checkpoint_lacks(run, tmp_path):
    run(LoRA(rank=4), Save(tmp_path / "half.ckpt"))
    content = torch.load(tmp_path / "half.ckpt", weights_only=True)
    del content["lit_spectral"]["method_state"]
    torch.save(content, tmp_path / "half.ckpt")
    with pytest.raises(InputError, match="an earlier version of lit-spectral, without method_state"):
        load(tmp_path / "half.ckpt")
