"""Lightning's averages of weights: what checkpoints hold of them, and what holds of them."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import transformers
from conftest import scalars
from crossing import crossed
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging
from lit_spectral.datamodules import GLUE
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lit_spectral.adapters import adapters, trained_state
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import FCLoRA, FullFineTuning, HiPLoRA, LoRA, Peft
from lit_spectral.spectra import linalg
from lit_spectral.tasks import SequenceClassification

DECAY = 0.8
METHODS = {
    "LoRA": LoRA(rank=4),
    "FCLoRA": FCLoRA(rank=4, sigma_bar=0.05, sigma_lr=100),
    "FullFineTuning": FullFineTuning(),
    "DoRA": Peft(config={"peft_type": "LORA", "r": 4, "use_dora": True}),
}
CALLBACKS = {
    "ema": lambda: EMAWeightAveraging(decay=DECAY),
    "ema, buffers aside": lambda: EMAWeightAveraging(decay=DECAY, use_buffers=False),
    "ema at once": lambda: WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(DECAY)),
    "mean": WeightAveraging,
}


class ByHand(pl.Callback):
    """Averages of what is trained, after every step, and the weights themselves after each."""

    def __init__(self, mean=False):
        self.mean, self.averages, self.count = mean, {}, 0

    def on_train_batch_end(self, trainer, pl_module, *args):
        now = {name: tensor.double() for name, tensor in trained_state(pl_module.model).items()}
        if not self.averages:
            self.averages = now
        else:
            share = 1 / (self.count + 1) if self.mean else 1 - DECAY
            self.averages = {name: old + share * (now[name] - old) for name, old in self.averages.items()}
        self.count += 1


class Save(pl.Callback):
    """Keeps the checkpoint of the first epoch's end."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("method", "name"), crossed(METHODS, CALLBACKS, also=["LoRA"]))
def test_a_checkpoint_holds_the_averages_of_what_is_trained_and_no_backbone(train, tmp_path, method, name):
    by_hand = ByHand(mean=name == "mean")
    train(METHODS[method], CALLBACKS[name](), by_hand, Save(tmp_path / "a.ckpt"), max_epochs=1, lr=1e-3)
    content = read(tmp_path / "a.ckpt")
    expected = {f"model.{name}": tensor for name, tensor in by_hand.averages.items()}
    assert content["state_dict"].keys() == content["current_model_state"].keys() == expected.keys()
    for key, tensor in content["state_dict"].items():
        torch.testing.assert_close(tensor.double(), expected[key], rtol=1e-4, atol=1e-6)
    moved = [float((content["current_model_state"][key].double() - expected[key]).abs().max()) for key in expected]
    assert max(moved) > 1e-3  # else raw weights would do as well


def test_the_file_is_an_adapters(train, tmp_path):
    sizes = {}
    for name, callbacks in {"with": [EMAWeightAveraging(decay=DECAY)], "without": []}.items():
        train(LoRA(rank=4), *callbacks, Save(tmp_path / name), max_epochs=1)
        sizes[name] = (tmp_path / name).stat().st_size
    weights = sum(4 * tensor.numel() for tensor in read(tmp_path / "without")["state_dict"].values())
    assert sizes["with"] - sizes["without"] < 1.5 * weights + 20_000  # the weights once more, and their names


def test_load_and_validate_take_the_averages(train, backbone_folder, mrpc_folder, tmp_path):
    trainer = train(LoRA(rank=4), EMAWeightAveraging(decay=DECAY), Save(tmp_path / "a.ckpt"), max_epochs=1)
    content = read(tmp_path / "a.ckpt")
    loaded = trained_state(load(tmp_path / "a.ckpt").model)
    assert all(torch.equal(loaded[name.removeprefix("model.")], mean) for name, mean in content["state_dict"].items())
    task = SequenceClassification(backbone_folder("bert"), LoRA(rank=4))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    alone = pl.Trainer(**options, callbacks=[EMAWeightAveraging(decay=DECAY)])
    alone.validate(task, GLUE("mrpc", mrpc_folder, batch_size=8), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert float(alone.callback_metrics["val/loss"]) == pytest.approx(scalars(trainer)["val/loss"][-1][1], rel=1e-6)


def test_the_trainer_that_has_averaged_validates_a_checkpoint(train, mrpc_folder, tmp_path):
    trainer = train(LoRA(rank=4), EMAWeightAveraging(decay=DECAY), Save(tmp_path / "a.ckpt"), max_epochs=2)
    data = GLUE("mrpc", mrpc_folder, batch_size=8)
    trainer.validate(trainer.lightning_module, data, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(scalars(trainer)["val/loss"][0][1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_resumed_run_has_the_averages_of_the_uninterrupted_one(train, tmp_path, name, precision):
    run = {"max_epochs": 2, "precision": precision}
    whole = train(FCLoRA(rank=4), CALLBACKS[name](), Save(tmp_path / "a.ckpt"), **run)
    whole.save_checkpoint(tmp_path / "whole.ckpt")
    resumed = train(FCLoRA(rank=4), CALLBACKS[name](), ckpt_path=tmp_path / "a.ckpt", **run)
    resumed.save_checkpoint(tmp_path / "resumed.ckpt")
    expected, found = read(tmp_path / "whole.ckpt"), read(tmp_path / "resumed.ckpt")
    assert all(torch.equal(found["state_dict"][key], mean) for key, mean in expected["state_dict"].items())
    assert found["averaging_state"]["n_averaged"] == expected["averaging_state"]["n_averaged"] == 16


def test_without_the_callback_a_run_goes_on_with_the_weights_themselves(train, tmp_path, caplog):
    whole = train(LoRA(rank=4), max_epochs=2)
    train(LoRA(rank=4), EMAWeightAveraging(decay=DECAY), Save(tmp_path / "a.ckpt"), max_epochs=2)
    resumed = train(LoRA(rank=4), max_epochs=2, ckpt_path=tmp_path / "a.ckpt")
    expected, found = (trained_state(trainer.lightning_module.model) for trainer in (whole, resumed))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert "weight averaging: EMAWeightAveraging, here None" in caplog.text


def test_a_run_may_begin_to_average_when_it_is_resumed(train, tmp_path):
    train(LoRA(rank=4), Save(tmp_path / "a.ckpt"), max_epochs=2)
    by_hand = ByHand()
    resumed = train(LoRA(rank=4), EMAWeightAveraging(decay=DECAY), by_hand, ckpt_path=tmp_path / "a.ckpt", max_epochs=2)
    for name, tensor in trained_state(resumed.lightning_module.model).items():
        torch.testing.assert_close(tensor.double(), by_hand.averages[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_backbone_keeps_its_bytes_and_tokens_their_positions(train, backbone_folder, precision):
    before = transformers.AutoModel.from_pretrained(backbone_folder("bert"), add_pooling_layer=False)
    trainer = train(LoRA(rank=4), EMAWeightAveraging(decay=0.9), precision=precision)
    model = trainer.lightning_module.model
    after = {n.replace(".base_layer", "").split("bert.")[-1]: t for n, t in model.named_parameters()}
    assert [name for name, tensor in before.named_parameters() if not torch.equal(tensor, after[name])] == []
    assert model.bert.embeddings.position_ids.tolist() == [list(range(64))]


def test_the_backbone_is_not_held_twice(train):
    average = EMAWeightAveraging(decay=DECAY)
    task = train(LoRA(rank=4), average, max_steps=1).lightning_module
    copies = dict(average._average_model.module.named_parameters())
    for name, parameter in task.named_parameters():
        assert (copies[name] is parameter) == (not parameter.requires_grad), name


HELD = {
    "gram-schmidt": FCLoRA(rank=4, sigma_bar=0.05, sigma_lr=100, orthogonality="gram-schmidt"),
    "ball": LoRA(rank=4, ball=0.03),
    "confined": HiPLoRA(rank=4, principal_rank=6, ball=0.03),
}


@pytest.mark.parametrize("method", HELD.values(), ids=HELD)
def test_the_averages_lie_in_the_sets_that_adapters_declare(train, tmp_path, method):
    train(method, EMAWeightAveraging(decay=DECAY), Save(tmp_path / "a.ckpt"), max_epochs=1)
    radius = []
    for adapter in adapters(load(tmp_path / "a.ckpt").model):
        for bound in adapter.bounded:
            assert bound.lower <= bound.tensor.min()
            assert bound.tensor.max() <= bound.upper
        for columns, basis in adapter.confined:
            assert (basis.mT @ columns).norm() <= 1e-5 * columns.norm()
        if adapter.retracted:
            assert all(linalg.orthogonality_error(t.detach()[None]) < 1e-5 for t in adapter.orthonormal)
        if adapter.ball_radius is not None:
            radius.append(float(torch.linalg.svdvals(adapter.delta_weight().double())[0]))
    assert not radius or 0.02 < max(radius) <= 0.03 * (1 + 1e-5)


def test_a_checkpoint_of_weights_alone_holds_averages_too(train, tmp_path):
    by_hand = ByHand()

    class Weights(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)

    train(LoRA(rank=4), EMAWeightAveraging(decay=DECAY), by_hand, Weights(), max_epochs=1)
    content = read(tmp_path / "a.ckpt")
    assert not {"current_model_state", "averaging_state", "optimizer_states"} & content.keys()
    for name, tensor in by_hand.averages.items():
        torch.testing.assert_close(content["state_dict"][f"model.{name}"].double(), tensor, rtol=1e-4, atol=1e-6)


class KeepsAll(pl.Callback):
    """Has the whole task's weights, and the model's, in its state, and loads them strictly."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.task = pl_module

    def on_fit_start(self, trainer, pl_module):
        self.task = pl_module

    def state_dict(self):
        return {"deep": [{"task": self.task.state_dict()}], "model": self.task.model.state_dict()}

    def load_state_dict(self, state):
        self.loaded = state


@pytest.mark.parametrize("architecture", ["bert", "llama"])  # whose own weights are named model.… too
def test_any_state_dict_of_a_callback_is_an_adapters_and_is_whole_again_when_loaded(
    train, backbone_folder, tmp_path, architecture
):
    def task():
        return SequenceClassification(backbone_folder(architecture), LoRA(rank=4))

    trainer = train(None, KeepsAll(), Save(tmp_path / "a.ckpt"), task=task(), max_epochs=1)
    trained = trained_state(trainer.lightning_module.model).keys()
    state = read(tmp_path / "a.ckpt")["callbacks"]["KeepsAll"]
    assert state["model"].keys() == trained
    assert state["deep"][0]["task"].keys() == {f"model.{name}" for name in trained}
    keeps = KeepsAll()
    resumed = train(None, keeps, task=task(), max_epochs=2, ckpt_path=tmp_path / "a.ckpt").lightning_module
    resumed.model.load_state_dict(keeps.loaded["model"], strict=True)
    resumed.load_state_dict(keeps.loaded["deep"][0]["task"], strict=True)


@pytest.mark.parametrize(
    ("method", "callbacks", "message"),
    [
        (LoRA(rank=4), [StochasticWeightAveraging(1e-3)], "averages nothing; give WeightAveraging or EMA"),
        (LoRA(rank=4), [EMAWeightAveraging(), WeightAveraging()], "averages of one callback"),
        (
            Peft(config={"peft_type": "ADALORA", "init_r": 6, "target_r": 3}),
            [EMAWeightAveraging()],
            "EMAWeightAveraging would average ranks that AdaLoRA has given up",
        ),
    ],
)
def test_averages_that_would_be_none_are_refused(train, method, callbacks, message):
    started = []
    callbacks[0].on_train_start = lambda *args: started.append(True)
    with pytest.raises(InputError, match=message):
        train(method, *callbacks)
    assert not started


def test_a_second_fit_averages_from_its_own_first_step(train, backbone_folder):
    average, task = EMAWeightAveraging(decay=DECAY), SequenceClassification(backbone_folder("bert"), LoRA(rank=4))
    for _ in range(2):
        train(None, average, task=task, max_epochs=1)
        assert average._average_model.n_averaged == 8


@pytest.mark.slow
@pytest.mark.parametrize("averages", [[], [EMAWeightAveraging]], ids=["plain", "averaged"])
def test_a_compiled_models_checkpoint_is_that_of_the_model(train, backbone_folder, tmp_path, averages):
    def compiled(folder):
        task = SequenceClassification(folder, LoRA(rank=4), num_labels=2)
        task.configure_model()
        task.model = torch.compile(task.model, backend="eager")
        return task

    callbacks = [kind(decay=DECAY) for kind in averages]
    short = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0}  # each shape is compiled anew
    train(None, *callbacks, Save(tmp_path / "a.ckpt"), task=compiled(backbone_folder("bert")), **short)
    content = read(tmp_path / "a.ckpt")
    assert content["state_dict"].keys() == {f"model.{name}" for name in trained_state(load(tmp_path / "a.ckpt").model)}
    resumed = compiled(backbone_folder("bert"))
    train(None, *callbacks, task=resumed, **short, ckpt_path=tmp_path / "a.ckpt")
    found = {name.replace("_orig_mod.", ""): tensor for name, tensor in resumed.state_dict().items()}
    raw = content.get("current_model_state", content["state_dict"])
    assert all(torch.equal(found[name], tensor) for name, tensor in raw.items())


@pytest.mark.slow
def test_the_command_averages_and_goes_on(fit):
    flags = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.8", "--trainer.max_epochs=2"]
    path = fit("fclora_roberta_mrpc", *flags).trainer.checkpoint_callback.best_model_path
    content = read(path)
    assert content["current_model_state"].keys() == content["state_dict"].keys()
    loaded = trained_state(load(path).model)
    assert all(torch.equal(loaded[name.removeprefix("model.")], mean) for name, mean in content["state_dict"].items())
    resumed = fit("fclora_roberta_mrpc", *flags, f"--ckpt_path={path}")
    assert resumed.trainer.global_step == 2 * 4  # batches of 16
    validated = fit("fclora_roberta_mrpc", f"--ckpt_path={path}", "--data.batch_size=24", command="validate")
    assert validated.trainer.callback_metrics["val/loss"] > 0


def test_a_copy_of_a_task_is_its_own(backbone_folder):
    """Which averages begin with."""

    def build(parameters):
        return torch.optim.AdamW(parameters)

    task = SequenceClassification(backbone_folder("bert"), LoRA(rank=4), num_labels=2, optimizer=build)
    task.configure_model()
    other = copy.deepcopy(task)
    assert other.optimizer is build
    assert not {p.data_ptr() for p in task.parameters()} & {p.data_ptr() for p in other.parameters()}
    assert other.method is not task.method
    assert other.metrics is not task.metrics
