import pytest
import torch
from test_partial_svd import gaussian, largest_angle, with_spectrum

from lit_spectral.spectra import partial_svd as module
from lit_spectral.spectra.partial_svd import drawn_places, inner_svd, partial_svd
from lit_spectral.spectra.ritz import LARGE

PLACES = torch.tensor([300, 4, 255, 256, 0])

# Large enough for their Gram matrix to be made tridiagonal.
WEIGHTS = {
    "tall": gaussian(700, LARGE),
    "wide": gaussian(LARGE, 700),
    "square": gaussian(LARGE, LARGE),
    "odd": gaussian(601, 517),
    "slow decay": with_spectrum(torch.arange(1, 521) ** -0.5, 600, 520),
    "large values": with_spectrum(torch.cat([torch.logspace(1.6, 1, 20), torch.linspace(1, 3, 500)]), 520, 520),
}


@pytest.fixture
def solved(monkeypatch):
    """In which dtypes Gram matrices were made tridiagonal."""
    dtypes = []

    class Seen(module.Reduction):
        def __init__(self, gram):
            dtypes.append(gram.dtype)
            super().__init__(gram)

    monkeypatch.setattr(module, "Reduction", Seen)
    return dtypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_inner_triplets_are_those_of_a_float64_svd(weight, dtype, solved):
    weight = weight.to(dtype)
    (u, sigma, v), angle = inner_svd(weight, PLACES)
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close(sigma, values[PLACES], rtol=1e-9, atol=0)
    for index, place in enumerate(PLACES.tolist()):
        assert largest_angle(u[:, index : index + 1], left[:, place : place + 1]) <= 1e-4
        assert largest_angle(v[:, index : index + 1], right[place : place + 1].T) <= 1e-4
    assert angle <= 1e-4
    assert solved == [torch.float32]  # whose rounding is refined away


@pytest.mark.parametrize("weight", [WEIGHTS["tall"], WEIGHTS["wide"]], ids=["tall", "wide"])
def test_inner_triplets_satisfy_their_definition(weight):
    u, sigma, v = inner_svd(weight, PLACES).triplets
    for columns in (u, v):
        torch.testing.assert_close(columns.T @ columns, torch.eye(5).double(), rtol=0, atol=1e-12)
    if weight.shape[0] < weight.shape[1]:
        weight, u, v = weight.T, v, u
    torch.testing.assert_close(weight.double() @ v, u * sigma, rtol=0, atol=1e-12 * float(weight.norm()))


def test_without_refinement_float32_does_not_pass_and_float64_does(monkeypatch, solved):
    monkeypatch.setattr(module, "MOST_REFINEMENTS", 0)
    assert inner_svd(WEIGHTS["large values"], PLACES).angle <= 1e-4
    assert solved == [torch.float32, torch.float64]


def test_values_that_float32_can_not_tell_apart_are_counted_in_float64(solved):
    # Squares differ by 1e-9 of the largest one's.
    weight = with_spectrum(torch.cat([torch.tensor([1e3]), 1 + 1e-3 * torch.arange(519, 0, -1)]), 520, 520)
    sigma = inner_svd(weight, PLACES).triplets.sigma
    torch.testing.assert_close(sigma, torch.linalg.svdvals(weight.double())[PLACES], rtol=1e-9, atol=0)
    assert torch.float64 in solved


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(600, LARGE),
        torch.eye(LARGE),
        with_spectrum(torch.ones(LARGE), LARGE, LARGE),
        with_spectrum(torch.arange(1.0, 101), 600, LARGE),
        gaussian(600, LARGE) * 1e-25,
    ],
    ids=["zero", "identity", "equal values", "rank deficient", "squares below float32"],
)
def test_degenerate_weights_give_true_triplets(weight):
    u, sigma, v = inner_svd(weight, PLACES).triplets
    torch.testing.assert_close(sigma, torch.linalg.svdvals(weight.double())[PLACES], rtol=1e-6, atol=1e-36)
    scale = 1e-5 * float(weight.double().norm())
    torch.testing.assert_close(weight.double() @ v, u * sigma, rtol=0, atol=scale)
    torch.testing.assert_close(weight.double().T @ u, v * sigma, rtol=0, atol=scale)
    torch.testing.assert_close(v.T @ v, torch.eye(5).double(), rtol=0, atol=1e-12)


def test_a_batch_gives_what_its_matrices_give():
    batch = gaussian(2, 530, LARGE)
    together = inner_svd(batch, PLACES).triplets
    for index, weight in enumerate(batch):
        torch.testing.assert_close(together.sigma[index], inner_svd(weight, PLACES).triplets.sigma, rtol=1e-9, atol=0)


def test_random_triplets_are_those_at_the_drawn_places():
    places = drawn_places(LARGE, 5, seed=3)
    sigma = partial_svd(WEIGHTS["tall"], "random", 5, seed=3).triplets.sigma
    torch.testing.assert_close(sigma, torch.linalg.svdvals(WEIGHTS["tall"].double())[places], rtol=1e-9, atol=0)


def test_small_matrices_are_not_made_tridiagonal(solved):
    inner_svd(gaussian(40, 30), torch.tensor([3, 1]))
    assert not solved


def test_the_lower_end_of_a_large_oblong_matrix_comes_the_same_way(solved):
    weight = gaussian(800, LARGE)
    (u, sigma, v), angle = partial_svd(weight, "bottom", 4)
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    torch.testing.assert_close(sigma, values[-4:], rtol=1e-9, atol=0)
    assert max(largest_angle(u, left[:, -4:]), largest_angle(v, right[-4:].T)) <= 1e-4
    assert angle <= 1e-4
    assert solved == [torch.float32]


def test_a_lower_end_that_float32_loses_is_found_by_the_inverse(solved):
    weight = with_spectrum(torch.logspace(0, -4, LARGE), 800, LARGE)
    sigma = partial_svd(weight, "bottom", 4).triplets.sigma
    torch.testing.assert_close(sigma, torch.linalg.svdvals(weight.double())[-4:], rtol=1e-6, atol=0)
    assert solved == [torch.float32]
