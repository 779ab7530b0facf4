"""A resumed run's method: every setting acts, or is refused before anything is computed."""

import dataclasses

import lightning.pytorch as pl
import pytest
import torch
from conftest import Watch
from lit_spectral.datamodules import GLUE
from resuming import Save, run, weights  # noqa: F401 (fixtures)

from lit_spectral import methods
from lit_spectral.adapters import adapters, named_wrappers, trained_state
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, LoRA, Method
from lit_spectral.tasks import SequenceClassification
from lit_spectral.tasks.optimization import parameter_groups

# Of every method, what a resumed run is given in place of the first settings, and whether that acts.
LOW_RANK = {"dropout": 0.25, "ball": 0.01, "frobenius": 0.02, "input_rank": 2, "head_lr": 3.0}


BASES = {
    "LoRA": ({}, LOW_RANK),
    "RsLoRA": ({}, LOW_RANK),
    "LoRAPlus": ({}, LOW_RANK | {"lr_ratio": 4.0}),
    "PiSSA": ({}, {"dropout": 0.25, "ball": 0.01, "frobenius": 0.02, "head_lr": 3.0}),
    "MiLoRA": ({}, {"dropout": 0.25, "ball": 0.01, "frobenius": 0.02, "head_lr": 3.0}),
    "RandomSVDLoRA": ({}, {"dropout": 0.25, "ball": 0.01, "frobenius": 0.02, "head_lr": 3.0}),
    "SORSA": ({}, {"dropout": 0.25, "ball": 0.01, "frobenius": 0.02, "head_lr": 3.0, "gamma": 0.3}),
    "StelLA": ({}, LOW_RANK),
    "EBLoRA": ({}, LOW_RANK),
    "ProjLoRA": ({"principal_rank": 6}, LOW_RANK),
    "HiPLoRA": (
        {"principal_rank": 6},
        LOW_RANK | {"budget": 0.3, "sensitivity": 2.0, "delta_lr": 5.0, "project": False},
    ),
    "HiRA": ({}, {"dropout": 0.25, "head_lr": 3.0}),
    "HiRALoRA": ({}, {"dropout": 0.25, "head_lr": 3.0}),
    "MoRA": ({}, {"dropout": 0.25, "head_lr": 3.0}),
    "FullFineTuning": ({}, {"head_lr": 3.0}),
    "BitFit": ({}, {"head_lr": 3.0}),
    "Peft": ({"config": {"peft_type": "LORA", "r": 4}}, {"head_lr": 3.0}),
}


FACTORED = LOW_RANK | {
    "sigma_bar": 0.02,
    "gamma": 0.3,
    "sigma_lr": 5.0,
    "factor_lr": 5.0,
    "orthogonality": "gradient",
    "principal_rank": 6,
}


BASES |= dict.fromkeys(["FCLoRA", "HiLoRA"], ({"start": "zero"}, FACTORED))
BASES |= dict.fromkeys(["Houlsby", "Pfeiffer", "Series", "Parallel"], ({"width": 4}, {"dropout": 0.25, "head_lr": 3.0}))


REFUSED = {
    "rank": 5,
    "width": 5,
    "activation": "silu",
    "alpha": 7.0,
    "seed": 1,
    "start": "singular",
    "offset": 2,
    "sigma": "free",
    "principal_rank": 5,
    "input_rank": 2,
    "input_text": "nowhere",
    "reference": "uniform",
    "reference_rank": 3,
    "lora_rank": 5,
    "target_modules": ["query"],
    "start_from": "elsewhere.ckpt",
    "after": ["nowhere.ckpt"],
    "on_top_of": ["nowhere.ckpt"],
    "config": {"peft_type": "LORA", "r": 4, "lora_dropout": 0.5},
}


def declared(trainer):
    """What the adapters declare, and the ratios of the groups."""
    task = trainer.lightning_module
    found = [getattr(wrapper, "dropout", None) for wrapper in named_wrappers(task.model).values()]
    for adapter in adapters(task.model):
        budget = adapter.budget
        found += [adapter.ball_radius, adapter.penalty_weight]
        found += [adapter.frobenius_radius]
        found += [adapter.decoupled_penalty, adapter.retracted, [(b.lower, b.upper) for b in adapter.bounded]]
        found += [dict(adapter.lr_ratios), [tuple(confined.basis.shape) for confined in adapter.confined]]
        found += [(budget.factor, budget.weights.tolist()) if budget else None]
    groups = parameter_groups(task.model, task._output_layers, task.method.head_lr)
    return [*found, [(group["name"], group["lr_ratio"]) for group in groups]]


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_every_setting_of_every_method_acts_or_is_refused(run, tmp_path, name, caplog):
    kind, path = getattr(methods, name), tmp_path / "done.ckpt"
    fields = {field.name for field in dataclasses.fields(kind)}
    base, acting = BASES[name]
    base = base | {"rank": 4} if "rank" in fields else base
    run(kind(**base), max_steps=1).save_checkpoint(path)
    # Nothing is left to do but to compare and to load.
    same = declared(run(kind(**base), path=path, max_steps=1))
    for field in sorted(fields):
        changed = base | {field: acting[field] if field in acting else REFUSED[field]}
        if field == "reference_rank":
            changed["reference"] = "truncated"
        if field == "input_text":  # which is read if something asks for it
            changed["ball"] = {"of_outputs": 0.1}
        if field in acting:
            assert declared(run(kind(**changed), path=path, max_steps=1)) != same, field
        else:
            with pytest.raises(InputError):
                run(kind(**changed), path=path, max_steps=1)


def test_no_method_is_left_out():
    kinds = [kind for name, kind in vars(methods).items() if name in methods.__all__ and isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, Method) and kind.trains]
    assert {kind.__name__ for kind in kinds} - {"Method", "LowRankMethod"} == BASES.keys()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (LoRA(rank=4), LoRA(rank=4, seed=1), r"at the start of training alone .*\(seed: 0, here 1\)"),
        (FCLoRA(rank=4), FCLoRA(rank=4, start="zero"), r"\(start: singular, here zero\); give its settings"),
        (FCLoRA(rank=4, start="zero"), FCLoRA(rank=4, start="zero", sigma="fixed"), "sigma: bounded, here fixed"),
    ],
)
def test_a_start_that_is_past_is_refused_in_one_line(run, tmp_path, first, second, message):
    run(first, max_steps=1).save_checkpoint(tmp_path / "done.ckpt")
    with pytest.raises(InputError, match=message):
        run(second, path=tmp_path / "done.ckpt")


def test_a_start_that_is_past_need_not_be_given_to_validate(run, backbone_folder, mrpc_folder, tmp_path):
    run(FCLoRA(rank=4), max_steps=1).save_checkpoint(tmp_path / "done.ckpt")
    task = SequenceClassification(backbone_folder("bert"), FCLoRA(rank=4, start="zero", seed=3))
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.validate(task, GLUE("mrpc", mrpc_folder), ckpt_path=tmp_path / "done.ckpt", verbose=False)
    expected = trained_state(load(tmp_path / "done.ckpt").model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trained_state(task.model).items())


def test_bounds_that_are_given_hold_in_a_resumed_run(run, tmp_path):
    largest = []

    def look(task):
        largest.append(max(float(adapter.sigma.max()) for adapter in adapters(task.model)))

    path = tmp_path / "half.ckpt"
    run(FCLoRA(rank=4, sigma_bar=0.05, sigma_lr=100), Save(path), Watch(look))
    assert max(largest) > 0.04
    largest.clear()
    run(FCLoRA(rank=4, sigma_bar=0.02, sigma_lr=100), Watch(look), path=path)
    assert max(largest) == pytest.approx(0.02)


def test_a_flag_that_is_given_to_the_command_acts(fit, tmp_path, capfd):
    flags = ["--trainer.max_epochs=2", "--trainer.callbacks+=LearningRateMonitor", "--model.warmup_steps=0"]
    first = fit("fclora_roberta_mrpc", *flags)
    path = first.trainer.checkpoint_callback.best_model_path
    capfd.readouterr()
    given = ["--trainer.max_epochs=4", "--model.optimizer.lr=1e-2", "--model.optimizer.weight_decay=0.1"]
    resumed = fit("fclora_roberta_mrpc", *flags, *given, "--model.method.gamma=0.2", f"--ckpt_path={path}")
    groups = {group["name"]: group for group in resumed.trainer.optimizers[0].param_groups}
    assert groups["rest"]["initial_lr"] == 1e-2
    assert groups["sigma-vectors"]["initial_lr"] == pytest.approx(1e-2 * resumed.model.method.sigma_lr)
    assert groups["u"]["weight_decay"] == 0.1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "act from here on" in line]
    assert "gamma: 0.01, here 0.2" in line
    assert "optimizer.lr: 0.0004, here 0.01" in line
    with pytest.raises(InputError, match="AdamW, whose state SGD can't go on with"):
        fit("fclora_roberta_mrpc", *flags, "--model.optimizer=SGD", "--model.optimizer.lr=0.1", f"--ckpt_path={path}")
