"""Measures of changes beside their weights, on matrices whose answers are known."""

import math

import pytest
import torch

from lit_spectral import analysis as an
from lit_spectral.analysis.measuring import THRESHOLDS
from lit_spectral.spectra import SingularTriplets
from lit_spectral.updates import Delta, Pair, intruders

WIDE = torch.float64
# Singular values of a weight whose singular vectors are the axes.
SIGMA = torch.arange(8, 0, -1, dtype=WIDE)
WEIGHT = torch.zeros(10, 8, dtype=WIDE)
WEIGHT[range(8), range(8)] = SIGMA


def axes(*numbers, rows=10):
    return torch.eye(rows, dtype=WIDE)[:, list(numbers)]


def pair_of(left, right, size=1.0):
    """size · u vᵀ for an axis on either side."""
    return Delta(Pair(size * axes(left), axes(right, rows=8).mT))


def leading(count):
    return SingularTriplets(axes(*range(count)), SIGMA[:count], axes(*range(count), rows=8))


def turned(size, seed=0):
    return torch.linalg.qr(torch.randn(size, size, dtype=WIDE, generator=torch.Generator().manual_seed(seed))).Q


def as_dense(delta):
    return Delta(matrix=delta.dense(dtype=WIDE))


both_kinds = pytest.mark.parametrize("kind", [lambda delta: delta, as_dense], ids=["thin", "dense"])


def test_errors_of_the_nearest_matrices_of_each_rank():
    torch.testing.assert_close(an.error_curve(torch.tensor([4.0, 3.0])), torch.tensor([1, 0.6, 0], dtype=WIDE))
    assert not an.error_curve(torch.zeros(3)).any()


@pytest.mark.parametrize(("sigma", "error", "expected"), [
    ([4.0, 3.0], 0.7, 1), ([4.0, 3.0], 0.05, 2), ([1.0] * 4, 0.5, 3), ([1.0, 0.0, 0.0], 0.05, 1),
])  # fmt: skip
def test_how_many_values_come_near(sigma, error, expected):
    assert an.width(an.error_curve(torch.tensor(sigma)), error) == expected


@pytest.mark.parametrize("rate", [0.003, 0.05, 1.0])
def test_an_exponential_decay_is_found(rate):
    numbers = torch.arange(1, 101, dtype=WIDE)
    found = an.exponential_decay(7 * torch.exp(-rate * numbers))
    assert found == pytest.approx((math.exp(rate), rate, 0), abs=1e-7)


def test_equal_values_do_not_decay():
    assert an.exponential_decay(torch.full((50,), 3.0)) == pytest.approx((1, 0, 0), abs=1e-7)


def test_a_matrix_of_low_rank_decays_fast_and_one_that_is_0_not_at_all():
    flat, low = torch.linspace(2, 1, 60, dtype=WIDE), an.ideal_low_rank((60, 70))
    assert an.exponential_decay(low).rate > 10 * an.exponential_decay(flat).rate
    assert all(map(math.isnan, an.exponential_decay(torch.zeros(5))))


def test_the_ideal_matrix_is_of_low_rank():
    found = an.ideal_low_rank((48, 36), seed=3)
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(1, *each, generator=generator, dtype=WIDE)[0] for each in ((48, 3), (3, 36)))
    values = torch.linalg.svdvals(left @ right)
    torch.testing.assert_close(found[:3], values[:3] / values[0])
    assert not found[3:].any()
    assert an.width(an.error_curve(an.ideal_low_rank((768, 768)))) == 64


def test_quartiles_count_upwards():
    assert an.quartiles(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])) == [2, 3, 4, 5]


@pytest.mark.parametrize(("sigma", "expected"), [([3.0] * 4, 4), ([2.0, 0.0], 1), ([0.0, 0.0], 0)])
def test_effective_rank_of_equal_values_is_their_number(sigma, expected):
    assert an.effective_rank(torch.tensor(sigma)) == pytest.approx(expected)


def test_effective_rank_by_its_equation():
    p = [0.5, 0.3, 0.2]
    found = an.effective_rank(torch.tensor([5.0, 3.0, 2.0]))
    assert found == pytest.approx(math.exp(-sum(each * math.log(each) for each in p)))


def test_sizes_by_singular_values():
    found = an.magnitude(torch.tensor([2.0, 1.0, 0.004, 0.0], dtype=WIDE))
    energy = 5 + 0.004**2
    assert (found.spectral, found.rank, found.exceeding) == (2, 3, 2)
    assert (found.frobenius, found.energy, found.stable_rank) == pytest.approx((energy**0.5, energy, energy / 4))


@both_kinds
def test_the_leading_part_is_at_most_what_there_is(kind):
    change = Delta.added([pair_of(2, 3, 5.0), pair_of(4, 1, 2.0)])
    sigma, own = an.leading_part(kind(change), 4)
    torch.testing.assert_close(sigma[:2], torch.tensor([5.0, 2.0], dtype=WIDE))
    assert len(own.sigma) == 2
    torch.testing.assert_close((own.u * own.sigma) @ own.v.mT, change.dense(dtype=WIDE))


def test_subspaces_are_similar_by_what_they_share():
    basis = axes(0, 1, 2, 3)
    assert an.similarity(basis, basis @ turned(4)) == pytest.approx(1)
    assert an.similarity(basis, axes(4, 5, 6, 7)) == 0
    assert an.similarity(basis, axes(2, 3, 8, 9)) == pytest.approx(0.5)
    half = (axes(0) + axes(9)) / 2**0.5
    assert an.similarity(axes(0), half) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="of one dimension"):
        an.similarity(basis, axes(0))


def test_random_subspaces_are_orthonormal_and_drawn_by_the_seed():
    one, again, other = (an.random_basis(12, 3, seed) for seed in (1, 1, 2))
    torch.testing.assert_close(one.mT @ one, torch.eye(3, dtype=WIDE))
    assert torch.equal(one, again)
    assert an.similarity(one, other) < 0.9


def test_random_subspaces_share_as_much_as_chance_has_it():
    shared = [an.similarity(axes(0, 1, 2, rows=12), an.random_basis(12, 3, seed)) for seed in range(200)]
    assert sum(shared) / len(shared) == pytest.approx(3 / 12, abs=0.03)


@both_kinds
@pytest.mark.parametrize(("left", "right", "both", "of_left", "of_right"), [
    (1, 1, 1, 1, 1), (2, 0, 1, 1, 1), (1, 5, 0, 1, 0), (9, 2, 0, 0, 1), (8, 7, 0, 0, 0),
])  # fmt: skip
def test_one_pair_is_in_the_basis_or_out_of_it(kind, left, right, both, of_left, of_right):
    found = an.inside(kind(pair_of(left, right, -0.5)), leading(3))
    assert found[1:] == (both, of_left, of_right)
    expected = torch.zeros(3, 3, dtype=WIDE)
    if both:
        expected[left, right] = -0.5
    torch.testing.assert_close(found.core, expected)


def test_shares_are_of_squares():
    change = Delta.added([pair_of(0, 0, 2.0), pair_of(7, 7, 1.0)])
    assert an.inside(change, leading(3))[1:] == pytest.approx((0.8, 0.8, 0.8))


def test_of_a_change_that_is_0_there_is_no_share():
    assert all(map(math.isnan, an.inside(pair_of(0, 0, 0.0), leading(3))[1:]))


def test_what_was_changed_less_where_values_are_larger_is_below_0():
    sigma = torch.tensor([3.0, 2.0, 1.0])
    assert an.gain_correlation(torch.tensor([0.1, -0.2, 0.3]), sigma) == pytest.approx(-1)
    assert an.gain_correlation(torch.tensor([-0.9, 0.2, 0.1]), sigma) == pytest.approx(1)
    assert math.isnan(an.gain_correlation(torch.zeros(3), sigma))


@both_kinds
@pytest.mark.parametrize("place", [0, 5])
def test_a_change_that_is_one_singular_pair_amplifies_what_was_there(place, kind):
    change, size = pair_of(place, place, 0.5), 0.5
    own = SingularTriplets(axes(place), torch.tensor([size], dtype=WIDE), axes(place, rows=8))
    random = axes(3), axes(3, rows=8)
    found = an.projections(WEIGHT, kind(change), own, leading(1), random, size)
    sigma = float(SIGMA[place])
    within = size if place == 0 else 0.0
    assert found == (sigma, 8, 5, size, within, size / sigma, size / within if within else math.inf)


def test_norms_within_subspaces_do_not_depend_on_their_bases():
    q = turned(3)
    found = an.projected_norm(WEIGHT, axes(0, 1, 2) @ q, axes(0, 1, 2, rows=8) @ q.mT)
    assert found == pytest.approx(float(SIGMA[:3].norm()))


@pytest.mark.parametrize("shape", [(14, 9), (9, 14), (9, 9)])
def test_likeness_is_that_to_all_of_the_weights_vectors(shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    u = torch.linalg.svd(weight.double(), full_matrices=False).U
    columns = torch.linalg.qr(torch.randn(shape[0], 4, generator=generator, dtype=WIDE)).Q
    columns[:, 0] = u[:, -1]
    for known in (2, 9):
        found = intruders.Likeness(weight, u[:, :known]).of(columns, THRESHOLDS)
        torch.testing.assert_close(found, (u.mT @ columns).abs().amax(0), atol=1e-5, rtol=0)


def test_two_vectors_turned_into_each_other_are_like_either_by_the_cosine():
    mixed = math.cos(0.6) * axes(0) + math.sin(0.6) * axes(6)
    found = intruders.Likeness(WEIGHT, axes(0, 1)).of(mixed, [0.9])
    assert float(found) == pytest.approx(math.cos(0.6))
