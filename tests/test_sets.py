"""The sets in which factors and ΔW are held after every step, and the budget that holds gains down."""

from dataclasses import replace

import pytest
import torch
from conftest import Watch, scalars
from crossing import crossed
from fits import outside
from lit_spectral.callbacks import HeldBackbone, SigmaClamp, SpectralBall

from lit_spectral.adapters import adapters, trained_state
from lit_spectral.methods import SORSA, EBLoRA, FCLoRA, HiPLoRA, LoRA, MiLoRA, PiSSA, ProjLoRA, StelLA
from lit_spectral.spectra import linalg
from lit_spectral.tasks import SequenceClassification

CONFINED = [HiPLoRA(rank=4, principal_rank=6), ProjLoRA(rank=4, principal_rank=6)]
RUNS = {"plain": {}, "accumulated": {"accumulate_grad_batches": 3}, "bf16": {"precision": "bf16-mixed"}}


@pytest.mark.slow
@pytest.mark.parametrize("method", CONFINED, ids=["HiPLoRA", "ProjLoRA"])
@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_the_residual_channel_keeps_out_of_the_principal_directions(train, method, options):
    """To 1e-5 relative, after each of 50 steps."""
    found = []

    def look(task):
        for adapter in adapters(task.model):
            u, _, vt = torch.linalg.svd(adapter.weight.detach().double(), full_matrices=False)
            if adapter.left.abs().max() > 0:
                left, right = adapter.left.detach().double(), adapter.right.detach().double()
                found.append(float((u[:, :6].T @ left).norm() / left.norm()))
                found.append(float((right @ vt[:6].T).norm() / right.norm()))

    # W₀ is read while it trains, and is to be that which was decomposed.
    train(method, Watch(look), HeldBackbone(enabled=False), max_epochs=20, max_steps=50, **options)
    assert len(found) >= 2 * 12 * 45
    assert max(found) <= 1e-5


def test_fclora_keeps_out_of_the_principal_directions_and_starts_with_others(backbone_folder, train):
    task = SequenceClassification(backbone_folder("bert"), FCLoRA(rank=4, principal_rank=6), num_labels=2)
    task.configure_model()
    found = []

    def look(task):
        for adapter in adapters(task.model):
            u, _, vt = torch.linalg.svd(adapter.weight.detach().double(), full_matrices=False)
            sides = ((u[:, :6], adapter.u.detach().double()), (vt[:6].T, adapter.v.detach().double()))
            found.extend(float((basis.T @ side).norm(dim=0).max()) for basis, side in sides)

    look(task)
    assert max(found) < 1e-4  # pairs of the SVD itself, none of them principal
    assert all(adapter.u.detach().norm(dim=0).min() > 0.99 for adapter in adapters(task.model))
    found.clear()
    train(FCLoRA(rank=4, principal_rank=6, sigma_lr=100), Watch(look), HeldBackbone(enabled=False))
    assert max(found) < 1e-4


def test_fclora_as_in_its_papers_does_not_keep_out_of_them(backbone_folder):
    task = SequenceClassification(backbone_folder("bert"), FCLoRA(rank=4, input_rank=0), num_labels=2)
    task.configure_model()
    assert not any(adapter.confined for adapter in adapters(task.model))


def test_the_directions_fclora_keeps_out_of_are_not_saved(backbone_folder):
    task = SequenceClassification(backbone_folder("bert"), FCLoRA(rank=4, principal_rank=32), num_labels=2)
    task.configure_model()
    assert all(adapter.confined[0].basis.shape[1] == 8 for adapter in adapters(task.model))  # a quarter of 32
    assert not [name for name in trained_state(task.model) if "basis" in name]


def test_without_projection_the_residual_channel_enters_the_principal_directions(train):
    """Else the test above could not fail."""
    task = train(HiPLoRA(rank=4, principal_rank=6, project=False)).lightning_module
    inside = [float((a.u_basis.T @ a.left).detach().norm() / a.left.detach().norm()) for a in adapters(task.model)]
    assert max(inside) > 0.1


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_gram_schmidt_keeps_the_vectors_orthonormal_after_every_step(train, options):
    errors = []

    def look(task):
        tensors = [t for a in adapters(task.model) for t in (a.u.detach(), a.v.detach())]
        errors.append(max(float(linalg.orthogonality_error(t[None])) for t in tensors))

    trainer = train(FCLoRA(rank=4, orthogonality="gram-schmidt", sigma_lr=100), Watch(look), **options)
    assert max(errors) < 1e-5
    assert "train/orthogonality_penalty" not in scalars(trainer)


BALLS = {
    "LoRA": LoRA(rank=4, ball=0.03),
    "PiSSA": PiSSA(rank=4, ball=0.03),
    "MiLoRA": MiLoRA(rank=4, ball=0.03),
    "SORSA": SORSA(rank=4, ball=0.03),
    "FCLoRA": FCLoRA(rank=4, ball=0.03, sigma_lr=100),
    "FCLoRA by Gram-Schmidt": FCLoRA(rank=4, ball=0.03, sigma_lr=100, orthogonality="gram-schmidt"),
    "StelLA": StelLA(rank=4, ball=0.03),
    "EBLoRA": EBLoRA(rank=4, alpha=8, ball=0.03),
    "ProjLoRA": ProjLoRA(rank=4, principal_rank=6, ball=0.03),
    "HiPLoRA": HiPLoRA(rank=4, principal_rank=6, ball=0.03),
    "HiPLoRA without projection": HiPLoRA(rank=4, principal_rank=6, ball=0.03, project=False),
}


@pytest.mark.parametrize(("name", "options"), crossed(BALLS, RUNS, also=["FCLoRA"]))
def test_the_change_stays_in_the_ball_after_every_step(train, name, options):
    norms = []

    def look(task):
        norms.extend(float(torch.linalg.svdvals(a.delta_weight().double())[0]) for a in adapters(task.model))

    train(BALLS[name], Watch(look), **RUNS[options])
    assert max(norms) <= 0.03 * (1 + 1e-5)
    assert max(norms) > 0.027  # the bound was felt


FROBENIUS = {name: replace(method, ball=None, frobenius=0.03) for name, method in BALLS.items()}
FROBENIUS["FCLoRA with σ fixed"] = FCLoRA(rank=4, frobenius=0.03, start="zero", sigma="fixed")


@pytest.mark.parametrize(("name", "options"), crossed(FROBENIUS, RUNS, also=["FCLoRA"]))
def test_the_change_stays_in_the_frobenius_ball_and_its_other_sets_after_every_step(train, name, options):
    norms, off = [], []

    def look(task):
        for adapter in adapters(task.model):
            norms.append(float(adapter.delta_weight().double().norm()))
            off.append(outside(adapter))

    train(FROBENIUS[name], Watch(look), **RUNS[options])
    assert max(norms) <= 0.03 * (1 + 1e-5)
    assert max(norms) > 0.0299  # the bound was felt
    assert max(off) < 1e-5


@pytest.mark.parametrize("method", [LoRA, PiSSA], ids=["LoRA", "PiSSA, whose ΔW is a difference"])
def test_both_balls_are_held_at_once(train, method):
    found = []
    method = method(rank=4, ball=0.02, frobenius=0.03)
    train(method, Watch(lambda task: found.extend(torch.linalg.svdvals(a.delta_weight().double())
                                                  for a in adapters(task.model))))  # fmt: skip
    assert max(float(each[0]) for each in found) <= 0.02 * (1 + 1e-5)
    assert max(float(each.norm()) for each in found) <= 0.03 * (1 + 1e-5)


def test_the_budget_is_no_part_of_the_loss_and_holds_the_gains_down(train):
    runs = [train(HiPLoRA(rank=4, principal_rank=6, budget=budget)) for budget in (0.0, 100.0)]
    assert scalars(runs[0])["train/loss"][0] == scalars(runs[1])["train/loss"][0]
    assert "train/budget_penalty" not in scalars(runs[0])
    gains = [max(float(a.delta.detach().abs().max()) for a in adapters(run.lightning_module.model)) for run in runs]
    assert gains[1] < 0.5 * gains[0]


@pytest.mark.parametrize("sensitivity", [0.0, 2.0])
def test_the_budget_is_that_of_its_definition(train, sensitivity):
    trainer = train(HiPLoRA(rank=4, principal_rank=6, budget=0.3, sensitivity=sensitivity), max_steps=3)
    task = trainer.lightning_module
    expected = 0.0
    for adapter in adapters(task.model):
        sigma = torch.linalg.svdvals(adapter.weight.detach().double())[:6] ** sensitivity
        expected += 0.3 * float((sigma / sigma.sum() * adapter.delta.detach().double() ** 2).sum())
    task.log = lambda name, value, **options: logged.update({name: float(value)})
    logged = {}
    task.on_before_optimizer_step(trainer.optimizers[0])
    assert logged["train/budget_penalty"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("own", [[SpectralBall], [SpectralBall, SigmaClamp]], ids=["ball", "ball and clamp"])
def test_the_order_of_projections_is_not_that_of_the_list(train, own):
    method = FCLoRA(rank=4, ball=0.03, sigma_bar=0.05, sigma_lr=100)
    expected = trained_state(train(method).lightning_module.model)
    found = trained_state(train(method, *(kind() for kind in own)).lightning_module.model)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
