"""Fisher information of W₀'s components, interventions on them, and correlations: against answers by hand and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from test_analysis_effects import source  # noqa: F401 (a fixture)
from torch import nn
from transformers.pytorch_utils import Conv1D

from lit_spectral.adapters import named_changes
from lit_spectral.adapters.linear import weight_matrix
from lit_spectral.analysis import component_gradients, correlation, fisher_overlap, intervened
from lit_spectral.analysis.fisher import bases_of, diagonal_fisher, overlaps
from lit_spectral.analysis.interventions import draw, intervene
from lit_spectral.analysis.readings import TextReading
from lit_spectral.checkpoint import load_given
from lit_spectral.spectra import SingularTriplets


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OVERLAPS = {
    "equal": ([1.0, 2, 3], [1.0, 2, 3], 1),
    "scaled": ([1.0, 2, 3], [5.0, 10, 15], 1),
    "disjoint": ([1.0, 2, 0], [0.0, 0, 3], 0),
    "half of each": ([1.0, 1, 0], [0.0, 1, 1], 1 / 2),
    "√(1/2 · 9/10) + √(1/2 · 1/10)": ([1.0, 1], [9.0, 1], math.sqrt(0.45) + math.sqrt(0.05)),
    "nothing": ([0.0, 0], [1.0, 1], math.nan),
}


@pytest.mark.parametrize(("one", "other", "expected"), OVERLAPS.values(), ids=OVERLAPS)
def test_overlaps_are_those_by_hand(one, other, expected):
    one, other = torch.tensor(one), torch.tensor(other)
    assert fisher_overlap(one, other) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert fisher_overlap(other, one) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_overlap_is_1_less_the_frechet_distance_of_whole_matrices():
    one, other = drawn(6).square(), drawn(6, seed=1).square()
    first, second = torch.diag(one / one.sum()), torch.diag(other / other.sum())
    distance = (first + second - 2 * (first @ second).sqrt()).trace() / 2
    assert fisher_overlap(one, other) == pytest.approx(1 - float(distance), rel=1e-12)


def linear(weight, transposed=False):
    out, into = weight.shape
    module = (Conv1D(out, into) if transposed else nn.Linear(into, out, bias=False)).double()
    module.weight.data.copy_(weight.mT if transposed else weight)
    return module.requires_grad_(False)


def test_the_fisher_information_of_a_diagonal_map_is_that_by_hand():
    """Of W = diag(3, 2, 1), x = eᵢ and ½ ‖W x − y‖², ∂ℓ/∂σᵢ = σᵢ − yᵢ, and 0 for the others."""
    module = linear(torch.diag(torch.tensor([3.0, 2, 1])))
    y, eye = torch.tensor([1.0, 1.0, 0.5]).double(), torch.eye(3).double()
    bases = bases_of({"map": module})
    rows = [component_gradients(lambda x=x: (module(x) - y).square().sum() / 2, {"map": module}, bases)["map"]
            for x in eye.unsqueeze(1)]  # fmt: skip
    expected = torch.diag(torch.tensor([2.0, 1, 0.5]).double())
    assert torch.allclose(torch.stack(rows), expected, atol=1e-12)


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "Conv1D"])
def test_component_gradients_are_those_of_the_weights_gradient(transposed):
    """Of two maps, one of them called twice, in several positions, without a gradient of any weight."""
    one, other = linear(drawn(5, 4), transposed), linear(drawn(4, 5, seed=1), transposed)
    maps = {"one": one, "other": other}
    x = drawn(2, 3, 4, seed=2)

    def loss():
        return one(torch.tanh(other(torch.tanh(one(x))))).square().sum()

    bases = bases_of(maps)
    found = component_gradients(loss, maps, bases)
    assert not any(module.weight.requires_grad or module.weight.grad is not None for module in maps.values())
    assert not any(module._forward_hooks for module in maps.values())
    gradients = torch.autograd.grad(
        (loss := (one.requires_grad_(), other.requires_grad_(), loss())[-1]), [one.weight, other.weight]
    )
    for (path, (u, v)), gradient in zip(bases.items(), gradients, strict=True):
        whole = gradient.mT if transposed else gradient
        assert torch.allclose(found[path], (u.mT @ whole @ v).diagonal(), rtol=1e-10), path


def test_groups_are_of_falling_values_and_halves_are_told():
    fishers = {
        "a": {"map": torch.tensor([[1.0, 0, 1, 1], [1.0, 0, 1, 1]])},
        "b": {"map": torch.tensor([[1.0, 0, 1, 0], [1.0, 0, 0, 1]])},
    }
    found = {(each.one, each.other): each.groups for each in overlaps(fishers, 2)}
    assert found[("a", "a")] == pytest.approx([1, 1])
    assert found[("b", "b")] == pytest.approx([1, 0])
    assert found[("a", "b")] == pytest.approx([1, 1])


@pytest.fixture
def reading(source, text):
    """A text that a tiny decoder reads, in float64, with an adapter on."""
    task = load_given(source("llama")).double()
    return TextReading("words", text, task, 5, 16)


def changed_maps(task):
    return {path: change.base_layer for path, change in named_changes(task.model).items()}


def state_of(task):
    return {name: tensor.clone() for name, tensor in task.state_dict().items()}


def unchanged(task, state):
    plain = not any("forward" in vars(module) or module._forward_hooks for module in task.model.modules())
    return plain and all(torch.equal(each, state[name]) for name, each in task.state_dict().items())


def test_of_a_model_it_is_the_mean_square_over_rows_of_the_backbone_alone(reading):
    task = reading.task
    maps, state = changed_maps(task), state_of(task)
    bases = bases_of(maps)
    found = diagonal_fisher(reading, bases)
    assert unchanged(task, state)
    path = list(maps)[-1]
    u, v = bases[path]
    squares = []
    for row in reading.batches(1):
        weight = maps[path].weight.requires_grad_(True)
        with reading.base():
            loss, count = reading.loss(row)
        assert count == 15
        (gradient,) = torch.autograd.grad(loss, weight)
        weight.requires_grad_(False)
        squares.append((u.mT @ gradient @ v).diagonal().square())
    halves = torch.stack([torch.stack(squares[start::2]).mean(0) for start in (0, 1)])
    assert torch.allclose(found[path], halves, rtol=1e-8)


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "Conv1D"])
def test_an_intervention_is_another_weight_and_goes_off_again(transposed):
    module, x = linear(drawn(5, 4), transposed), drawn(2, 3, 4, seed=1)
    before = module(x)
    u, sigma, vt = torch.linalg.svd(weight_matrix(module), full_matrices=False)
    with intervened(module, u[:, 1], vt[1], -float(sigma[1])):
        found = module(x)
    sigma[1] = 0
    assert torch.allclose(found, linear((u * sigma) @ vt)(x), rtol=1e-12)
    with pytest.raises(RuntimeError, match="memory"), intervened(module, u[:, 0], vt[0], 1.0):
        raise RuntimeError("out of memory")
    assert torch.equal(module(x), before)


def test_each_way_does_to_the_backbones_loss_what_it_says_and_leaves_the_model_as_it_was(reading):
    task = reading.task
    maps, state = changed_maps(task), state_of(task)
    triplets = {}
    for path, module in maps.items():
        u, sigma, vt = torch.linalg.svd(module.weight, full_matrices=False)
        triplets[path] = SingularTriplets(u[:, :4], sigma[:4], vt.mT[:, :4])
    components = draw(triplets, 2, seed=3)
    found = intervene(reading, components, triplets, noise=0.5, batch_size=2, seed=7)
    assert unchanged(task, state)
    xi = torch.randn(2, generator=torch.Generator().manual_seed(7)).tolist()
    batches = reading.batches(5)
    with torch.no_grad(), reading.base():
        before = reading.mean_loss(batches)
        for place, component in enumerate(components):
            u, sigma, v = (each[..., component.number - 1] for each in triplets[component.path])
            weight = maps[component.path].weight
            for one, kept in zip(found[3 * place : 3 * place + 3], (0, -1, 1 + 0.5 * xi[place]), strict=True):
                weight.add_((kept - 1) * sigma * torch.outer(u, v))
                assert one.change == pytest.approx(reading.mean_loss(batches) - before, rel=1e-6), one
                weight.copy_(state[f"model.{component.path}.base_layer.weight"])
    assert [one.way for one in found] == ["zero", "flip", "noise"] * 2


def test_components_are_drawn_once_each_large_ones_more_often():
    sigma = torch.arange(8, 0, -1.0)
    triplets = {path: SingularTriplets(torch.zeros(9, 8), sigma, torch.zeros(9, 8)) for path in "abc"}
    found = draw(triplets, 99)
    assert len({each[:2] for each in found}) == len(found) == 24
    assert all(each.sigma == 9 - each.number for each in found)
    assert draw(triplets, 6, 1) == draw(triplets, 6, 1) != draw(triplets, 6, 2)
    first = [draw(triplets, 1, seed)[0].number for seed in range(300)]
    assert first.count(1) > 2 * first.count(3) > 0


@pytest.mark.parametrize("ranks", [False, True], ids=["Pearson", "Spearman"])
def test_correlations_and_their_intervals_are_scipys(ranks):
    generator = np.random.default_rng(0)
    one = generator.normal(size=25).round(1)  # with ties
    other = (one + generator.normal(size=25)).round(1)
    of = stats.spearmanr if ranks else stats.pearsonr
    found = correlation(one, other, ranks)
    assert found.value == pytest.approx(of(one, other).statistic, rel=1e-12)
    theirs = stats.bootstrap(
        (one, other), lambda x, y: of(x, y).statistic, paired=True, vectorized=False, n_resamples=999,
        method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.06)


def test_what_has_no_correlation_or_no_interval_has_none():
    assert correlation([1, 2, 3, 4], [2, 4, 6, 9], True)[:3] == pytest.approx((1, 1, 1))
    assert all(map(math.isnan, correlation([1, 1, 1], [1, 2, 3])[:3]))
    assert correlation([0.1] * 3, [1, 2, 3], True).text == "–"
    two = correlation([1, 2, math.nan], [2, 1, 5])
    assert (two.value, two.points, two.text) == (pytest.approx(-1), 2, "-1.00")
