"""A run that was stopped and gone on with ends as one that was not: parameters, optimizer and logged curve."""

import csv
import shutil

import lightning.pytorch as pl
import pytest
import torch
from conftest import scalars
from crossing import crossed
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lit_spectral.callbacks import RetentionMonitor, StepCheckpoint
from lit_spectral.datamodules import GLUE, MaskedText
from resuming import run, weights  # noqa: F401 (fixtures)

from lit_spectral.methods import FCLoRA, FullFineTuning, HiPLoRA, HiRA, LoRA, Peft
from lit_spectral.tasks import MaskedLM

SCHEDULES = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 3},
    "by steps": {"max_epochs": -1, "max_steps": 13},
    "validated inside epochs": {"val_check_interval": 3},
    "validated by batches": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "validated every other epoch": {"check_val_every_n_epoch": 2},
    "with workers": {"workers": 2},
    "a part of each epoch": {"limit_train_batches": 5, "max_epochs": 3},
}

# On every run some steps of these; where there is time every step of all.
QUICK = ["plain", "accumulated", "by steps"]


class Keep(StepCheckpoint):
    """Keeps each checkpoint of every step, and the optimizer's state at the end."""

    def __init__(self, folder):
        super().__init__(1, str(folder))

    def on_train_batch_start(self, trainer, *args):
        super().on_train_batch_start(trainer, *args)
        self.keep(trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        super().on_train_epoch_end(trainer, pl_module)
        self.keep(trainer)

    def keep(self, trainer):
        file = f"{self.dirpath}/last.ckpt"
        if trainer.global_step:
            shutil.copy(file, f"{self.dirpath}/{trainer.global_step}.ckpt")


def state(trainer):
    """All tensors that a run ends with."""
    moments = trainer.optimizers[0].state_dict()["state"]
    return weights(trainer) | {f"{i}.{name}": torch.as_tensor(v) for i, m in moments.items() for name, v in m.items()}


@pytest.fixture
def resumable(run, mrpc_folder, tmp_path):
    """Fit in a folder of logs with some of SCHEDULES' settings; returns the trainer."""

    def fit(method, name, *callbacks, path=None, workers=0, **options):
        data = GLUE("mrpc", mrpc_folder, batch_size=8, num_workers=workers)
        logger = TensorBoardLogger(tmp_path, "logs", version=name)
        options = {"logger": logger} | options | {"log_every_n_steps": 1, "enable_checkpointing": bool(callbacks)}
        return run(method(), *callbacks, data=data, path=path, **options)

    return fit


def outcome(trainer):
    """A copy of the state that a run ends with, and the points of its log."""
    return {name: tensor.clone() for name, tensor in state(trainer).items()}, scalars(trainer)


def check_equal(found, expected):
    """A run ends in this state, and its log holds these points."""
    states, curves = zip(outcome(found), expected, strict=True)
    assert states[0].keys() == states[1].keys()
    assert [name for name, tensor in states[1].items() if not torch.equal(states[0][name], tensor)] == []
    assert {tag for tag in curves[0].keys() | curves[1].keys() if curves[0].get(tag) != curves[1].get(tag)} == set()


def with_dropout():
    return FCLoRA(rank=4, dropout=0.1)


@pytest.mark.parametrize(
    ("options", "each"),
    [
        *(pytest.param(SCHEDULES[name], 3, id=name) for name in QUICK),
        *(pytest.param(options, 1, id=f"{name}, each", marks=pytest.mark.slow) for name, options in SCHEDULES.items()),
    ],
)
@pytest.mark.slow
def test_from_any_step_a_run_goes_on_as_if_it_had_not_been_stopped(resumable, tmp_path, options, each):
    whole = resumable(with_dropout, "whole", Keep(tmp_path / "kept"), **options)
    files = list((tmp_path / "kept").glob("[0-9]*.ckpt"))
    assert len(files) == whole.global_step
    files.sort(key=lambda file: int(file.stem))
    expected = outcome(whole)
    for file in {*files[each // 2 :: each], files[-1]}:  # the end of an epoch, 8, is among them
        folder = shutil.copytree(whole.log_dir, tmp_path / "logs" / file.stem)  # killed at its very end
        check_equal(resumable(with_dropout, file.stem, path=shutil.copy(file, folder), **options), expected)


METHODS = {
    "HiRA, whose norms are estimates": lambda: HiRA(rank=4, dropout=0.1),
    "HiPLoRA": lambda: HiPLoRA(rank=4, principal_rank=4),
    "AdaLoRA": lambda: Peft(config={"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 4}),
    "full": FullFineTuning,
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_from_inside_an_epoch_every_kind_of_state_goes_on(resumable, tmp_path, method):
    whole = resumable(method, "whole", Keep(tmp_path / "kept"))
    folder = shutil.copytree(whole.log_dir, tmp_path / "logs" / "rest")
    check_equal(resumable(method, "rest", path=shutil.copy(tmp_path / "kept" / "5.ckpt", folder)), outcome(whole))


class Interrupt(pl.Callback):
    """Ctrl-C at a hook of a batch, by the batch's number over all epochs."""

    def __init__(self, hook, batch):
        self.hook, self.batch, self.count = hook, batch, 0
        setattr(self, hook, self.strike)

    def strike(self, trainer, *args):
        self.count += 1
        if self.count == self.batch and not trainer.sanity_checking:
            raise KeyboardInterrupt


# A hook, and at which of its calls.
STRIKES = [
    "on_train_batch_start 6",
    "on_after_backward 5",
    "on_before_zero_grad 4",
    "on_after_backward 9",
    "on_train_epoch_start 2",
    "on_validation_batch_start 1",
    "on_validation_batch_end 2",
    "on_validation_epoch_end 1",
]
STEPS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 3},
    "validated between steps": {"val_check_interval": 4, "accumulate_grad_batches": 3},
}


@pytest.fixture(scope="module")
def uninterrupted():
    """Outcomes by the names of STEPS, each of a run that is made once."""
    return {}


@pytest.mark.parametrize(("strike", "name"), crossed(STRIKES, STEPS))
@pytest.mark.slow
def test_an_interrupted_run_goes_on_from_its_last_step(resumable, tmp_path, uninterrupted, strike, name):
    """Also where gradients of some micro-batches are lost; they are computed again."""
    options, (hook, call) = {"num_sanity_val_steps": 0} | STEPS[name], strike.split()
    if name not in uninterrupted:
        uninterrupted[name] = outcome(resumable(with_dropout, "whole", **options))
    keep = StepCheckpoint(1000, str(tmp_path / "logs" / "rest"))
    with pytest.raises(SystemExit):
        resumable(with_dropout, "rest", Interrupt(hook, int(call)), keep, **options)
    rest = resumable(with_dropout, "rest", path=tmp_path / "logs" / "rest" / "last.ckpt", **options)
    check_equal(rest, uninterrupted[name])


@pytest.mark.parametrize("batch", [3, 8, 11])
@pytest.mark.slow
def test_from_lightnings_own_checkpoints_parameters_go_on(resumable, tmp_path, batch):
    """They are written before their step is logged, whose validation comes after."""
    each = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = resumable(with_dropout, "whole", each, val_check_interval=4)
    rest = resumable(with_dropout, "rest", path=tmp_path / "kept" / f"step={batch}.ckpt", val_check_interval=4)
    assert all(torch.equal(state(rest)[name], tensor) for name, tensor in state(whole).items())


def test_masks_of_words_are_those_of_the_epoch_and_row(backbone_folder, run, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(f"the cat sat on mat {'very ' * (i % 7)}red" for i in range(80)))

    def fit(*callbacks, path=None):
        data = MaskedText(str(tmp_path / "text.txt"), batch_size=8, validation_fraction=0.2)
        task = MaskedLM(backbone_folder("bert"), LoRA(rank=4, dropout=0.1))
        return run(None, *callbacks, task=task, data=data, path=path, enable_checkpointing=bool(callbacks))

    whole = fit(Keep(tmp_path))
    rest = fit(path=tmp_path / "5.ckpt")
    assert all(torch.equal(state(rest)[name], tensor) for name, tensor in state(whole).items())


def test_rows_of_a_csv_log_are_there_once(resumable, tmp_path):
    logs = CSVLogger(tmp_path, "csv", version="x", flush_logs_every_n_steps=1)
    resumable(with_dropout, "", Keep(tmp_path / "csv" / "x"), logger=logs)
    again = CSVLogger(tmp_path, "csv", version="x")
    resumable(with_dropout, "", path=tmp_path / "csv" / "x" / "5.ckpt", logger=again)
    rows = [row for file in (tmp_path / "csv" / "x").glob("metrics*.csv") for row in csv.DictReader(file.open())]
    assert sorted(int(row["step"]) for row in rows if row.get("train/loss")) == list(range(16))


def test_the_flag_of_the_command_line_saves_between_epochs(fit, tmp_path):
    done = fit("fclora_roberta_mrpc", "--save_every_n_steps=1", "--trainer.max_steps=3", "--data.batch_size=8")
    last = next(tmp_path.rglob("last.ckpt"))
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert any(isinstance(callback, StepCheckpoint) for callback in done.trainer.callbacks)


def test_another_sampler_of_the_trainer_is_left_alone(run):
    assert run(LoRA(rank=4), overfit_batches=1, max_epochs=2).global_step == 2


def test_several_monitors_of_one_kind_are_told_apart(run, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and then the dog ran\n" * 4)
    texts = {"words": str(tmp_path / "text.txt")}
    monitors = [RetentionMonitor(texts, every_n_steps=steps, max_length=16) for steps in (2, 3)]
    assert run(LoRA(rank=4), *monitors, max_steps=3).global_step == 3
