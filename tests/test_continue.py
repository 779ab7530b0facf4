"""Training that begins at another adapter's change, and training that keeps out of others'."""

import dataclasses
import os
import shutil

import lightning.pytorch as pl
import pytest
import torch
import transformers
from fits import outside
from lit_spectral.datamodules import GLUE
from test_methods import OURS
from test_update_verbs import LOW_RANK, near

from lit_spectral import cli
from lit_spectral.adapters import DenseAdapter, adapters, named_changes
from lit_spectral.adapters.linear import weight_matrix
from lit_spectral.checkpoint import load
from lit_spectral.errors import InputError
from lit_spectral.methods import (
    SORSA,
    BitFit,
    FCLoRA,
    FullFineTuning,
    HiPLoRA,
    HiRA,
    HiRALoRA,
    LoRA,
    MoRA,
    Peft,
    PiSSA,
    ProjLoRA,
)
from lit_spectral.tasks import SequenceClassification
from lit_spectral.updates import Delta, Pair
from lit_spectral.updates.sources import read

ROWS = {"input_ids": torch.arange(5, 37).view(4, 8), "attention_mask": torch.ones(4, 8, dtype=torch.long)}
# Which go on with what they made themselves.
GO_ON = [*LOW_RANK, "HiRA", "HiRA with dropout", "HiRALoRA", "FullFineTuning", "BitFit"]
# Which can keep out of others.
KEEP_OUT = [name for name in LOW_RANK if OURS[name].__class__.__name__ not in {
    "PiSSA", "MiLoRA", "RandomSVDLoRA", "SORSA", "HiPLoRA"}]  # fmt: skip


@torch.no_grad()
def logits(task):
    before = task.training
    found = task.eval()(ROWS)
    task.train(before)
    return found


def changes(task):
    return {path: change.delta_weight() for path, change in named_changes(task.model).items()}


class Look(pl.Callback):
    """Logits and changes before the first step, and how far adapters are out of their sets after each."""

    def on_train_start(self, trainer, pl_module):
        self.outside = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.start, self.changes = logits(pl_module), changes(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.outside.append(max([0.0, *map(outside, adapters(pl_module.model))]))


def adamw(groups):
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)


@pytest.fixture(scope="module")
def run(backbone_folder, mrpc_folder):
    """Fit a method for three steps, to a checkpoint; returns the task and what was seen."""

    def fit(method, file, path=None, steps=3, backbone="bert", callbacks=()):
        pl.seed_everything(0)
        task, look = SequenceClassification(backbone_folder(backbone), method, optimizer=adamw), Look()
        quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
        trainer = pl.Trainer(max_steps=steps, accelerator="cpu", callbacks=[look, *callbacks], num_sanity_val_steps=0,
                             limit_val_batches=0, default_root_dir=file.parent, **quiet)  # fmt: skip
        trainer.fit(task, GLUE("mrpc", mrpc_folder, batch_size=8), ckpt_path=path)
        trainer.save_checkpoint(file)
        return task, look

    return fit


@pytest.fixture(scope="module")
def sources(run, tmp_path_factory):
    """Tasks by method, and their checkpoints, made once."""
    made = {}

    def of(method, backbone="bert"):
        key = f"{method} {backbone}"
        if key not in made:
            file = tmp_path_factory.mktemp("sources") / "source.ckpt"
            made[key] = run(method, file, backbone=backbone)[0], file
        return made[key]

    return of


@pytest.fixture
def source(sources, tmp_path):
    """A method's task after three steps, and a checkpoint that the test may remove."""

    def of(method, name="source", **how):
        task, file = sources(method, **how)
        return task, shutil.copy(file, str(tmp_path / f"{name}.ckpt"))

    return of


@pytest.fixture
def fit(run, tmp_path):
    """Fit a method; returns the task, what was seen, and the checkpoint."""

    def of(method, name="other", **how):
        path = tmp_path / f"{name}.ckpt"
        return *run(method, path, **how), str(path)

    return of


def begun(method, path):
    return dataclasses.replace(method, start_from=path)


def assert_goes_on(fit, method, task, path):
    """A run of the method begins where the task ended, keeps its sets, trains, and leaves all that it needs."""
    expected, given = logits(task), changes(task)
    other, look, file = fit(begun(method, path))
    near(look.start, expected)
    for place in given.keys() & look.changes.keys():
        near(look.changes[place], given[place], 1e-4)  # those of differences are a small part of what they are made of
    assert max(look.outside) < 1e-5
    assert (logits(other) - expected).norm() > 1e-4 * expected.norm()
    os.remove(path)
    assert torch.equal(logits(load(file)), logits(other))


@pytest.mark.parametrize("name", GO_ON)
def test_a_method_goes_on_with_what_it_made(source, fit, name):
    assert_goes_on(fit, OURS[name], *source(OURS[name]))


@pytest.mark.parametrize("name", LOW_RANK)
def test_lora_goes_on_with_any_change_of_low_rank(source, fit, name):
    assert_goes_on(fit, LoRA(rank=16, alpha=8), *source(OURS[name]))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LoRA(rank=3), FCLoRA(rank=4, sigma_bar="q4", input_rank=0)),
        (LoRA(rank=3), FCLoRA(rank=4, sigma_bar="q4", input_rank=0, orthogonality="gram-schmidt")),
        (LoRA(rank=3), FCLoRA(rank=4, input_rank=0, start="zero", sigma="fixed")),
        (ProjLoRA(rank=3, principal_rank=6), HiPLoRA(rank=4, principal_rank=6)),
        (LoRA(rank=3), HiPLoRA(rank=4, principal_rank=6, input_rank=0, project=False)),
        (HiRA(rank=3), HiRALoRA(rank=4)),
        (LoRA(rank=3), HiRALoRA(rank=4)),
        (HiRA(rank=3), FullFineTuning()),
        (LoRA(rank=3), FullFineTuning(target_modules=["value"])),
    ],
    ids=lambda method: type(method).__name__,
)
def test_other_methods_go_on_with_what_fits_them(source, fit, first, second):
    assert_goes_on(fit, second, *source(first))


def test_an_exported_adapter_is_gone_on_with(source, fit, tmp_path):
    task, path = source(OURS["FCLoRA"])
    cli.main(["export", path, "--output", str(tmp_path / "peft")])
    near(fit(LoRA(rank=4, start_from=str(tmp_path / "peft")))[1].start, logits(task))


def test_pairs_that_the_change_leaves_free_can_learn(source, fit):
    for adapter in adapters(fit(LoRA(rank=5, start_from=source(LoRA(rank=3))[1]))[0].model):
        assert adapter.left.norm(dim=0).min() > 0
        assert adapter.right.norm(dim=1).min() > 0


def test_a_method_goes_on_with_its_own_factors(source, fit):
    first, path = source(LoRA(rank=4, alpha=12))
    second = fit(LoRA(rank=4, alpha=12, start_from=path), steps=1)[0]
    for one, other in zip(adapters(first.model), adapters(second.model), strict=True):
        assert (one.right - other.right).abs().max() < 0.011  # of a step of Adam
        assert (one.left - other.left).abs().max() < 0.011


def test_full_fine_tuning_counts_its_change_from_the_backbone(source, fit):
    first, path = source(LoRA(rank=3))
    found = fit(FullFineTuning(start_from=path))[1].changes
    for place, change in changes(first).items():
        near(found[place], change)


@pytest.mark.parametrize("layer", [torch.nn.Linear(6, 9), transformers.pytorch_utils.Conv1D(9, 6)])
def test_a_change_is_put_on_a_weight_as_it_lies(layer):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(9, 2, generator=generator), torch.randn(2, 6, generator=generator)
    for delta in (Delta(Pair(left, right)), Delta(hadamard=Pair(left, right))):
        dense, expected = DenseAdapter(layer), delta.dense(weight_matrix(layer))
        dense.start_at(delta)
        near(dense.delta_weight(), expected)
        weight_matrix(layer).sub_(expected)


def test_averages_begin_there_too(source, fit):
    task, path = source(LoRA(rank=3))
    later = pl.callbacks.EMAWeightAveraging(update_starting_at_step=100)
    near(logits(fit(LoRA(rank=3, start_from=path), callbacks=[later])[0]), logits(task))


def test_a_run_that_goes_on_does_not_look_at_its_start_again(source, fit):
    method = LoRA(rank=3, start_from=source(LoRA(rank=3))[1])
    task, _, half = fit(method, "half")
    os.remove(method.start_from)
    assert (logits(fit(method, path=half, steps=5)[0]) - logits(task)).norm() > 0
    with pytest.raises(InputError, match=r"start of training alone .*\(start_from: .*source.ckpt, here None\)"):
        fit(LoRA(rank=3), path=half, steps=5)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (LoRA(rank=8), LoRA(rank=4), r"query: rank 4, and the change has rank 8; give --model.method.rank 8, or trunc"),
        (LoRA(rank=8), FCLoRA(rank=4, input_rank=0), "rank 4, and the change has rank 8"),
        (FullFineTuning(), LoRA(rank=4), r"LoRA doesn't train all that this brings \(bert"),
        (LoRA(rank=4), LoRA(rank=4, ball=1e-3), r"above the ball's 0.001; contract it first \(lit-spectral mend --b"),
        (LoRA(rank=4), FCLoRA(rank=4, sigma_bar=1e-3, input_rank=0), r"above σ̄ = 0.001; contract it first"),
        (LoRA(rank=4), FCLoRA(rank=4), r"lies where .* keeps out of; .* or FCLoRA with input_rank: 0"),
        (
            LoRA(rank=4),
            LoRA(rank=4, input_rank=2),
            r"% of its size lies where .* keeps out of; .* --input_rank",
        ),
        (LoRA(rank=4), ProjLoRA(rank=4, principal_rank=6), "lies where this method keeps out of"),
        (LoRA(rank=4), HiPLoRA(rank=4, principal_rank=6), "lies where this method keeps out of"),
        (LoRA(rank=4), PiSSA(rank=4), "part of W₀ of rank 4, which together with the change has rank 8"),
        (LoRA(rank=4), SORSA(rank=4), "part of W₀ of rank 4, which together with the change has rank 8"),
        (LoRA(rank=4), HiRA(rank=4), r"HiRA goes on with changes W₀ ⊙ \(L R\) alone"),
        (HiRA(rank=4, reference="uniform"), HiRA(rank=4, reference="uniform"), r"HiRA goes on with changes W₀ ⊙"),
        (HiRA(rank=4), LoRA(rank=4), "rank 4, and the change has rank 32"),
        (MoRA(rank=4), MoRA(rank=4), "this method can't begin at a given change; give LoRA"),
        (BitFit(), LoRA(rank=4), r"LoRA doesn't train all that this brings \(bert.*bias"),
        (LoRA(rank=4), BitFit(), r"BitFit leaves maps alone that this changes \(bert"),
        (LoRA(rank=4), LoRA(rank=4, target_modules=["query"]), r"\(bert.* and \d+ more\); name them in --model.me"),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else "",
)
def test_what_can_not_begin_there_is_refused_in_one_line(source, fit, first, second, message):
    with pytest.raises(InputError, match=message) as refusal:
        fit(begun(second, source(first)[1]))
    assert str(refusal.value).startswith("model.method.start_from: ")
    assert "\n" not in str(refusal.value)


def test_peft_and_a_source_that_is_not_there_are_refused(fit):
    with pytest.raises(InputError, match="peft's methods can't begin at a given change"):
        Peft(config={"peft_type": "LORA"}, start_from="x")
    with pytest.raises(InputError, match=r"^model.method.start_from: nowhere: there is nothing there"):
        fit(LoRA(start_from="nowhere"))
    with pytest.raises(InputError, match=r"^model.method.after: nowhere: there is nothing there"):
        fit(LoRA(after="nowhere"))


def test_an_adapter_of_another_backbone_is_refused(source, fit):
    path = source(LoRA(rank=4), backbone="roberta")[1]
    for method in (LoRA(rank=4, start_from=path), LoRA(rank=4, after=[path])):
        with pytest.raises(InputError, match=r"model.method.(start_from|after): .* whose weights differ"):
            fit(method)


# Keeping out.


def inside(task, paths):
    """The largest ‖UᵀΔW‖ and ‖ΔW V‖ over ‖ΔW‖, U and V the singular vectors of each source's changes."""
    found = []
    for source in paths:
        update = read(source)
        for path, delta in changes(task).items():
            u, sigma, v = update.changes[path].svd()
            kept = sigma > 1e-6 * sigma[0]
            if delta.any():  # else no gradient has led any σ upwards
                parts = u[:, kept].mT @ delta.double(), delta.double() @ v[:, kept]
                found += [float(part.norm() / delta.norm()) for part in parts]
    assert len(found) > len(changes(task))  # of two a source
    return max(found)


@pytest.mark.parametrize("name", KEEP_OUT)
def test_a_change_keeps_out_of_all_earlier_ones(source, fit, name):
    earlier = [source(LoRA(rank=3), "one")[1], source(OURS["FCLoRA"], "two")[1]]
    task, look, file = fit(dataclasses.replace(OURS[name], after=earlier))
    assert inside(task, earlier) < 1e-5
    assert max(look.outside) < 1e-5
    for path in earlier:
        os.remove(path)
    assert torch.equal(logits(load(file)), logits(task))


@pytest.mark.parametrize("orthogonality", ["decoupled", "gram-schmidt"])
def test_singular_pairs_that_an_earlier_run_has_taken_are_drawn_anew(source, fit, orthogonality):
    earlier = source(OURS["FCLoRA"])[1]
    task = fit(FCLoRA(rank=4, orthogonality=orthogonality, after=[earlier]), steps=1)[0]
    for adapter in adapters(task.model):
        assert torch.linalg.svdvals(adapter.u.detach()).min() > 0.9
        assert torch.linalg.svdvals(adapter.v.detach()).min() > 0.9


def test_it_is_held_beside_a_ball_and_inputs(source, fit):
    earlier = source(LoRA(rank=3))[1]
    task, look, _ = fit(LoRA(rank=4, ball=0.02, input_rank=1, after=earlier))
    assert inside(task, [earlier]) < 1e-5
    assert max(look.outside) < 1e-5


def test_a_run_may_begin_at_one_that_kept_out(source, fit):
    earlier = source(LoRA(rank=3))[1]
    first, _, path = fit(LoRA(rank=3, after=[earlier]), "first")
    task, look, _ = fit(LoRA(rank=4, after=[earlier], start_from=path))
    near(look.start, logits(first))
    assert inside(task, [earlier]) < 1e-5
    with pytest.raises(InputError, match="lies where this method keeps out of"):
        fit(LoRA(rank=4, after=[earlier], start_from=earlier))


def test_a_run_that_goes_on_keeps_out_still(source, fit):
    method = LoRA(rank=4, after=[source(LoRA(rank=3), "one")[1]])
    half = fit(method, "half")[2]
    assert inside(fit(method, path=half, steps=6)[0], method.after) < 1e-5
    os.remove(method.after[0])
    with pytest.raises(InputError, match=r"^model.method.after: .*one.ckpt: there is nothing there"):
        fit(method, path=half, steps=6)


@pytest.mark.parametrize(
    ("earlier", "method", "message"),
    [
        (LoRA(rank=4), PiSSA(rank=4), r"query: methods that start at a part of W₀ can't keep out of others"),
        (LoRA(rank=4), SORSA(rank=4), r"methods that start at a part of W₀ can't keep out of others"),
        (LoRA(rank=4), HiPLoRA(rank=4, principal_rank=6), r"gains on W₀'s principal directions can't keep out"),
        (LoRA(rank=20), LoRA(rank=16), r"rank 16 beside 20 directions to keep out of is above the 32 that there are"),
        (HiRA(rank=4), LoRA(rank=4), r"of full rank, which leaves no room; truncate it first \(lit-spectral exp"),
        (FullFineTuning(), LoRA(rank=4), r"of full rank, which leaves no room; truncate it first"),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else "",
)
def test_what_can_not_keep_out_is_refused_in_one_line(source, fit, earlier, method, message):
    with pytest.raises(InputError, match=message) as refusal:
        fit(dataclasses.replace(method, after=[source(earlier)[1]]))
    assert str(refusal.value).startswith("model.method.after: ")
