import pytest
import torch

from lit_spectral.spectra import partial_svd as module
from lit_spectral.spectra.partial_svd import partial_svd, singular_values

RANK = 4


def with_spectrum(values, out=160, into=130, seed=0):
    """A matrix with the given singular values and random vectors, float32."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(out, len(values), dtype=torch.float64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(into, len(values), dtype=torch.float64, generator=generator))
    return (left * values.double() @ right.T).float()


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The iteration takes those with a smaller side of at least 120; smaller ones go to eigh.
WEIGHTS = {
    "tall": gaussian(200, 130),
    "wide": gaussian(130, 200),
    "square": gaussian(130, 130),
    "small": gaussian(24, 16),
    "slow decay": with_spectrum(torch.arange(1, 131) ** -0.5),
    "fast decay": with_spectrum(0.9 ** torch.arange(130)),
    "one large value": with_spectrum(torch.cat([torch.tensor([1e3]), torch.linspace(1, 2, 129)])),
}


def exact(weight, part, rank=RANK):
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    kept = slice(rank) if part == "top" else slice(len(sigma) - rank, None)
    return u[:, kept], sigma[kept], vh[kept].T


def largest_angle(found, expected):
    """Sine of the largest angle between two subspaces given by orthonormal columns."""
    return float(torch.linalg.matrix_norm(expected - found @ (found.T @ expected), 2))


@pytest.mark.parametrize("part", ["top", "bottom"])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_an_end_has_the_subspaces_of_a_float64_svd(weight, part):
    (u, _, v), _ = partial_svd(weight, part, RANK)
    expected_u, _, expected_v = exact(weight, part)
    assert max(largest_angle(u, expected_u), largest_angle(v, expected_v)) <= 1e-4


@pytest.mark.parametrize("part", ["top", "bottom"])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_an_end_has_the_values_of_a_float64_svd_in_order(weight, part):
    torch.testing.assert_close(
        partial_svd(weight, part, RANK).triplets.sigma, exact(weight, part)[1], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("part", ["top", "bottom", "random"])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_triplets_satisfy_their_definition(weight, part):
    u, sigma, v = partial_svd(weight, part, RANK).triplets
    if weight.shape[0] < weight.shape[1]:
        weight, u, v = weight.T, v, u
    torch.testing.assert_close(weight.double() @ v, u * sigma, rtol=0, atol=1e-12 * float(weight.norm()))


@pytest.mark.parametrize("part", ["top", "bottom", "random"])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_vectors_are_orthonormal(weight, part):
    u, _, v = partial_svd(weight, part, RANK).triplets
    for columns in (u, v):
        torch.testing.assert_close(columns.T @ columns, torch.eye(RANK).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", ["top", "bottom"])
@pytest.mark.parametrize("weight", [WEIGHTS["tall"], WEIGHTS["slow decay"]], ids=["gaussian", "slow decay"])
def test_the_estimate_bounds_the_true_angle_and_is_not_idle(weight, part):
    (u, _, v), estimate = partial_svd(weight, part, RANK)
    expected_u, _, expected_v = exact(weight, part)
    true = max(largest_angle(u, expected_u), largest_angle(v, expected_v))
    assert true <= 1.5 * estimate <= 1.5e-4


@pytest.mark.parametrize("part", ["top", "bottom", "random"])
@pytest.mark.parametrize("shape", [(130, 200), (24, 16)])
def test_a_batch_gives_what_its_matrices_give(part, shape):
    batch = gaussian(3, *shape)
    together = partial_svd(batch, part, RANK).triplets
    for index, weight in enumerate(batch):
        u, sigma, v = partial_svd(weight, part, RANK).triplets
        torch.testing.assert_close(together.sigma[index], sigma, rtol=1e-6, atol=0)
        assert max(largest_angle(together.u[index], u), largest_angle(together.v[index], v)) <= 2e-4


@pytest.mark.parametrize("part", ["top", "bottom", "random"])
@pytest.mark.parametrize(
    "weight",
    [torch.zeros(150, 130), torch.eye(130), with_spectrum(torch.ones(130)), with_spectrum(torch.arange(1.0, 51))],
    ids=["zero", "identity", "equal values", "rank deficient"],
)
def test_degenerate_weights_give_true_triplets(weight, part):
    u, sigma, v = partial_svd(weight, part, RANK).triplets
    scale = 1e-5 * float(weight.norm())
    torch.testing.assert_close(weight.double() @ v, u * sigma, rtol=0, atol=scale)
    torch.testing.assert_close(weight.double().T @ u, v * sigma, rtol=0, atol=scale)
    torch.testing.assert_close(v.T @ v, torch.eye(RANK).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", ["top", "bottom"])
def test_a_result_whose_residuals_are_too_large_is_computed_again(part, monkeypatch):
    monkeypatch.setattr(module, "_leading_eigenvectors", lambda operator, start, rank, stop: start)
    (u, _, _), estimate = partial_svd(WEIGHTS["tall"], part, RANK)
    assert largest_angle(u, exact(WEIGHTS["tall"], part)[0]) <= 1e-4
    assert estimate <= 1e-4


def test_only_the_matrices_that_fail_are_computed_again(monkeypatch):
    sizes = []
    surer = module._from_gram
    monkeypatch.setattr(module, "_from_gram", lambda a, chosen: sizes.append(len(a)) or surer(a, chosen))
    batch = torch.stack([WEIGHTS["slow decay"], with_spectrum(torch.arange(1.0, 51))])
    partial_svd(batch, "bottom", RANK)
    assert sizes == [1]


@pytest.mark.parametrize("decomposition", ["eigh", "svdvals", "eigvalsh"])
def test_a_solver_that_does_not_converge_is_replaced(decomposition, monkeypatch):
    solver, calls = getattr(torch.linalg, decomposition), []

    def fails_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("did not converge")
        return solver(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, decomposition, fails_once)
    weight = gaussian(24, 16).double() if decomposition == "svdvals" else gaussian(24, 16)
    if decomposition == "eigh":
        values = partial_svd(weight, "random", 16).triplets.sigma.sort(descending=True).values
    else:
        values = singular_values(weight)
    assert calls
    torch.testing.assert_close(values.double(), torch.linalg.svd(weight.double()).S)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_weights_are_decomposed_in_float64(dtype):
    weight = gaussian(24, 16).to(dtype)
    sigma = partial_svd(weight, "top", RANK).triplets.sigma
    torch.testing.assert_close(sigma, torch.linalg.svdvals(weight.double())[:RANK])


def test_the_draw_depends_on_the_seed_only():
    first, again, other = (partial_svd(WEIGHTS["small"], "random", 5, seed).triplets.u for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_smaller_draw_is_the_beginning_of_a_larger():
    small, large = (partial_svd(WEIGHTS["small"], "random", rank, seed=3).triplets.sigma for rank in (5, 9))
    torch.testing.assert_close(small, large[:5])


def test_drawn_triplets_are_those_of_a_float64_svd():
    values = torch.linalg.svdvals(WEIGHTS["small"].double())
    expected = values[torch.randperm(16, generator=torch.Generator().manual_seed(3))[:5]]
    torch.testing.assert_close(partial_svd(WEIGHTS["small"], "random", 5, seed=3).triplets.sigma, expected)


@pytest.mark.parametrize("part", ["top", "random"])
def test_the_default_device_changes_nothing(part):
    expected = partial_svd(WEIGHTS["tall"], part, RANK, seed=3).triplets.u
    with torch.device("meta"):  # what Lightning does with the GPU while a model is configured
        assert torch.equal(partial_svd(WEIGHTS["tall"], part, RANK, seed=3).triplets.u, expected)


@pytest.mark.parametrize("weight", [gaussian(24, 16), gaussian(2, 24, 16)], ids=["one", "batch"])
def test_a_rank_above_the_matrix_is_refused(weight):
    with pytest.raises(ValueError, match=r"rank 17 is above .* = 16"):
        partial_svd(weight, "top", 17)


def test_a_weight_with_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        singular_values(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (3, 24, 16)])
def test_all_values_are_those_of_a_float64_svd(shape, dtype):
    weight = gaussian(*shape).to(dtype)
    expected = torch.linalg.svdvals(weight.double())
    torch.testing.assert_close(singular_values(weight).double(), expected, rtol=1e-6, atol=0)


def test_small_values_are_right_beside_large_ones():
    weight = with_spectrum(torch.logspace(0, -4, 130))
    torch.testing.assert_close(
        singular_values(weight).double(), torch.linalg.svdvals(weight.double()), rtol=1e-5, atol=0
    )
