"""Runs whose model is held near its base model: when, how much, for which methods, however they are cut."""

import functools
import shutil

import lightning.pytorch as pl
import pytest
import torch
from anchored import anchored, corpus, data, headless_folder  # noqa: F401 (fixtures)
from conftest import scalars
from fits import ROWS, together
from fits import fit as fit_as_one
from lit_spectral.callbacks import RetentionMonitor
from squad_rows import passage, write
from test_exact_resume import Keep, check_equal, outcome
from test_methods import QUICK, SHORT

from lit_spectral import tasks
from lit_spectral.errors import InputError
from lit_spectral.methods import LoRA
from lit_spectral.tasks import Anchor


def test_it_is_retentions_forgetting_loss_less_the_entropy(anchored, corpus):
    """Of the same windows, after two steps: at the third, whose model they have made, it is the same number."""
    settings = Anchor(0.1, 1, corpus, limit=4, max_length=16, batch_size=4)
    monitor = RetentionMonitor({"text": corpus}, every_n_steps=1, every_n_epochs=0, limit=4, max_length=16)
    logged = scalars(anchored("CausalLM", settings, monitor, max_steps=4))
    kept = zip(logged["retention/text/forgetting_loss"], logged["retention/text/base_entropy"], strict=True)
    after = [loss - entropy for (_, loss), (_, entropy) in kept]  # of the start, and after each step but the last two
    assert [value for _, value in logged["train/anchor"]][1:] == pytest.approx(after[1:4], rel=1e-3, abs=1e-6)


def test_the_heavier_it_is_the_nearer_a_model_stays(anchored, corpus):
    ends = []
    for weight in (1e-6, 100.0):
        settings = Anchor(weight, 2, corpus, max_length=16)
        trainer = anchored("CausalLM", settings, batch_size=4, lr=0.01, max_steps=10, max_epochs=-1)
        ends.append(scalars(trainer)["train/anchor"][-1][1])
    assert ends[0] > 3 * ends[1] > 0


def test_it_acts_at_every_so_many_steps_and_is_no_part_of_the_loss(anchored, corpus):
    plain = scalars(anchored("CausalLM", None, max_steps=9, max_epochs=-1))
    logged = scalars(anchored("CausalLM", Anchor(10.0, 4, corpus, max_length=16), max_steps=9, max_epochs=-1))
    assert [step for step, _ in logged["train/anchor"]] == [3, 7]
    # Until the fourth step has been made both are one run, and the fourth's loss is of the model before it.
    assert logged["train/loss"][:4] == plain["train/loss"][:4]
    assert logged["train/loss"][4:] != plain["train/loss"][4:]


def test_without_weight_nothing_changes(train, backbone_folder):
    def weights(anchor):
        task = tasks.SequenceClassification(backbone_folder("bert"), LoRA(rank=2, dropout=0.1), anchor=anchor)
        trainer = train(None, task=task, max_epochs=1)
        assert "train/anchor" not in trainer.callback_metrics
        return [p.detach().clone() for p in trainer.lightning_module.model.parameters() if p.requires_grad]

    assert all(torch.equal(a, b) for a, b in zip(weights(Anchor(weight=0)), weights(None), strict=True))


def weights_of(trainer):
    return [parameter for parameter in trainer.lightning_module.model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("kind", "text"), [("CausalLM", "prompts"), ("CausalLM", "self"), ("SequenceClassification", "corpus")]
)
def test_a_run_that_was_stopped_goes_on_as_one_that_was_not(kind, text, anchored, corpus, tmp_path):
    """From between two penalised steps, with accumulation; texts and rows are drawn again as they were."""
    settings = Anchor(10.0, 2, corpus if text == "corpus" else text, limit=12, max_length=16, batch_size=3)
    options = {
        "max_steps": 6,
        "max_epochs": -1,
        "accumulate_grad_batches": 2,
        "batch_size": 4,
        "gradient_clip_val": 1.0,
    }
    options["made"] = {"method": LoRA(rank=4, dropout=0.1)}
    logs = functools.partial(pl.loggers.TensorBoardLogger, tmp_path, "logs")
    whole = anchored(
        kind, settings, Keep(tmp_path / "kept"), logger=logs(version="whole"), enable_checkpointing=True, **options
    )
    folder = shutil.copytree(whole.log_dir, tmp_path / "logs" / "rest")
    path = shutil.copy(tmp_path / "kept" / "3.ckpt", folder)
    check_equal(anchored(kind, settings, logger=logs(version="rest"), ckpt_path=path, **options), outcome(whole))
    assert len(scalars(whole)["train/anchor"]) == 3


def test_with_gradient_checkpointing_layers_are_computed_again_and_nothing_else_changes(anchored):
    class Count(pl.Callback):
        """Calls of the first layer in the passes that an anchor adds, which are made in eval mode."""

        def on_train_start(self, trainer, pl_module):
            self.calls = 0
            layer = pl_module.encoder.layers[0].self_attn
            layer.register_forward_pre_hook(lambda module, args: setattr(self, "calls", self.calls + module.training))
            layer.register_forward_pre_hook(lambda module, args: setattr(self, "all", getattr(self, "all", 0) + 1))

    counts, ends = [], []
    for checkpointed in (False, True):
        count = Count()
        made = {"gradient_checkpointing": checkpointed, "method": LoRA(rank=4, dropout=0.0)}
        trainer = anchored("CausalLM", Anchor(10.0, 1), count, made=made, max_steps=1)
        counts.append(count.all - count.calls)
        ends.append(weights_of(trainer))
    assert counts == [2, 3]  # the base model's pass, the adapted one's, and this again
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*ends, strict=True))


def test_prompts_of_micro_batches_are_those_of_the_step(anchored):
    class Gradients(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            self.found = {n: p.grad.clone() for n, p in pl_module.model.named_parameters() if p.grad is not None}

    found, values = [], []
    for batch_size, accumulated in ((16, 1), (2, 8)):
        gradients = Gradients()
        options = {"accumulate_grad_batches": accumulated, "max_epochs": -1, "gradient_clip_val": 0.5}
        options |= {"batch_size": batch_size, "lr": 0.1}
        trainer = anchored("CausalLM", Anchor(100.0, 2), gradients, **options)
        found.append(torch.cat([g.flatten() for g in gradients.found.values()]))
        values.append(scalars(trainer)["train/anchor"])
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-3
    assert values[0] == [(1, pytest.approx(values[1][0][1], rel=1e-3))]
    assert float(found[0].norm()) == pytest.approx(0.5, rel=1e-4)  # so it is clipped with the task's


@pytest.mark.slow
def test_two_processes_are_held_as_one(decoder_folder, corpus, tmp_path, monkeypatch):
    """Under DDP and with the backbone in shards, on text that they share and on prompts of their own."""
    monkeypatch.setenv("LIT_SPECTRAL_CACHE", "")  # to be put back; `fit` sets it
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", ROWS), ("validation", 5)):
        rows = [{"q": passage(generator, 2 + i % 3), "a": passage(generator, 1 + i % 4)} for i in range(count)]
        write(tmp_path, split, rows)
    shutil.copy(corpus, tmp_path / "text.txt")
    base = {"backbone": decoder_folder(), "data": str(tmp_path), "method": "LoRA", "cache": str(tmp_path / "cache")}
    fits = {}
    for name, text in (("corpus", corpus), ("prompts", "prompts")):
        for strategy, size in (("auto", 4), ("ddp", 2), ("fsdp2", 2)):
            anchor = {"weight": 30.0, "every": 2, "text": text, "limit": 6, "max_length": 12, "batch_size": size}
            out = str(tmp_path / f"{name} {strategy}")
            fits[name, strategy] = base | {"strategy": strategy, "out": out, "anchor": anchor}
    together(tmp_path, [settings for (_, strategy), settings in fits.items() if strategy != "auto"])
    for name in ("corpus", "prompts"):
        fit_as_one(**fits[name, "auto"])
        moved = {
            key: torch.load(f"{settings['out']}.0.pt")["moved"] for key, settings in fits.items() if key[0] == name
        }
        one, *others = (torch.cat([tensor.flatten() for tensor in tensors.values()]) for tensors in moved.values())
        assert [float((other - one).norm() / one.norm()) < 1e-4 for other in others] == [True, True]
    one, other = (torch.load(f"{fits[name, 'auto']['out']}.0.pt")["metrics"] for name in ("corpus", "prompts"))
    assert one["train/anchor"] != other["train/anchor"] > 1e-6


REFUSED = {"FullFineTuning", "BitFit", "prompt tuning", "P-tuning", "prefix tuning"}


class Disturb(pl.Callback):
    """Changes whatever is trained, by much, since a random backbone's weights are small."""

    @torch.no_grad()
    def on_train_start(self, trainer, pl_module):
        generator = torch.Generator().manual_seed(1)
        for parameter in pl_module.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK | REFUSED else pytest.mark.slow) for name in SHORT]
)
def test_every_method_whose_adapters_can_be_passed_over_is_held(name, anchored):
    options = {"made": {"method": SHORT[name]}, "max_steps": 3}  # in fewer AdaLoRA does not get to its ranks
    run = functools.partial(anchored, "SequenceClassification", Anchor(1.0, 3), Disturb(), **options)
    if name in REFUSED:
        with pytest.raises(InputError, match=r"model.anchor: .* (trains the backbone's own|learned prompt of)"):
            run()
        return
    ((_, value),) = scalars(run())["train/anchor"]
    assert value > 1e-8  # else it is exactly 0
