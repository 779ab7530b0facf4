import pytest
import torch

from lit_spectral.spectra import linalg


def factors(n=3, out=40, rank=6, into=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(n, out, rank, generator=generator)
    right = torch.randn(n, rank, into, generator=generator)
    return left, right


def test_factor_spectrum_equals_dense_svd():
    left, right = factors()
    expected = torch.linalg.svdvals(left.double() @ right.double())[:, :6]
    torch.testing.assert_close(linalg.factor_spectrum(left, right).values, expected, rtol=1e-6, atol=1e-9)


def test_factor_spectrum_lift_gives_the_left_singular_vectors():
    left, right = factors()
    values, lift = linalg.factor_spectrum(left, right)
    vectors = left.double() @ lift
    product = left.double() @ right.double()
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(6).double().expand(3, 6, 6), rtol=0, atol=1e-9)
    torch.testing.assert_close(product.mT @ vectors, (vectors.mT @ product).mT, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.linalg.norm(product.mT @ vectors, dim=-2), values, rtol=1e-9, atol=0)


def test_factor_spectrum_of_a_zero_factor_is_zero():
    left, right = factors()
    values, lift = linalg.factor_spectrum(torch.zeros_like(left), right)
    assert values.abs().max() == 0
    assert torch.isfinite(lift).all()


def test_contraction_gives_the_nearest_matrix_in_the_ball():
    left, right = factors()
    radius = torch.tensor([10.0, 20.0, 1e6])
    contracted = linalg.contract_to_spectral_ball(left, right, radius) @ right.double()
    u, s, v = torch.linalg.svd(left.double() @ right.double(), full_matrices=False)
    expected = u @ torch.diag_embed(torch.minimum(s, radius.double()[:, None])) @ v
    torch.testing.assert_close(contracted, expected, rtol=0, atol=1e-8)


def test_contraction_from_far_outside_leaves_values_that_are_not_there_to_be_cut():
    """The smallest lies just outside, under values that are 1e9 times as large."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(1, 12, 3, generator=generator).double()).Q for _ in range(2))
    values = torch.tensor([2e9, 1e9, 1.1], dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(3, 3, generator=generator).double()).Q  # or each column has its own value
    left, right = u * values @ mix, mix.mT @ v.mT
    contracted = linalg.contract_to_spectral_ball(left, right, torch.ones(1)) @ right
    torch.testing.assert_close(torch.linalg.svdvals(contracted)[0, :3], torch.ones(3).double(), rtol=0, atol=1e-5)


def test_contraction_inside_the_ball_changes_nothing():
    left, right = factors()
    assert torch.equal(linalg.contract_to_spectral_ball(left, right, torch.full((3,), 1e6)), left.double())


def test_contraction_beside_one_from_far_outside_changes_nothing_inside():
    left, right = factors()
    contracted = linalg.contract_to_spectral_ball(left, right, torch.tensor([1e-6, 1e6, 1e6]))
    assert torch.equal(contracted[1:], left[1:].double())


def test_contraction_twice_changes_nothing():
    left, right = factors()
    radius = torch.full((3,), 5.0)
    once = linalg.contract_to_spectral_ball(left, right, radius).float()
    twice = linalg.contract_to_spectral_ball(once, right, radius).float()
    assert torch.equal(once, twice)


def test_contraction_with_a_rank_deficient_factor_is_finite_and_feasible():
    left, right = factors()
    left[:, :, 3:] = 0
    contracted = linalg.contract_to_spectral_ball(left, right, torch.full((3,), 5.0))
    assert torch.linalg.matrix_norm(contracted @ right.double(), 2).max() <= 5.0 * (1 + 1e-6)


def test_orthogonality_gradient_equals_autograd_in_float64():
    columns = torch.randn(4, 20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (expected,) = torch.autograd.grad(linalg.orthogonality_error(columns).sum(), columns)
    torch.testing.assert_close(linalg.orthogonality_gradient(columns.detach())[0], expected, rtol=1e-10, atol=1e-12)


def test_orthogonality_gradient_vanishes_at_orthonormal_columns():
    columns, _ = torch.linalg.qr(torch.randn(4, 20, 5, dtype=torch.float64))
    assert linalg.orthogonality_gradient(columns)[0].abs().max() == 0


def test_projecting_out_leaves_what_is_orthogonal_to_the_basis():
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(4, 30, 6, generator=generator))[0]
    columns = torch.randn(4, 30, 5, generator=generator)
    expected = columns.double() - basis.double() @ (basis.double().mT @ columns.double())
    found = columns.clone()
    linalg.project_out_(list(found.unbind()), list(basis.unbind()))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    once = found.clone()
    linalg.project_out_(list(found.unbind()), list(basis.unbind()))
    assert torch.equal(once, found)  # twice changes nothing


def test_orthonormalising_is_gram_schmidt_with_positive_signs():
    columns = torch.randn(4, 30, 5, generator=torch.Generator().manual_seed(1))
    q, upper = torch.linalg.qr(columns.double())
    expected = q * upper.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    found = linalg.orthonormalise(columns)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(linalg.orthonormalise(found), found)  # twice changes nothing


def test_orthonormalising_dependent_columns_still_gives_orthonormal_ones():
    columns = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(1))
    columns[0, :, 3] = columns[0, :, 1]
    assert linalg.orthogonality_error(linalg.orthonormalise(columns)).max() < 1e-5


def test_the_polar_factor_is_the_nearest_orthonormal_matrix_and_keeps_itself():
    columns = torch.randn(4, 30, 5, generator=torch.Generator().manual_seed(1))
    columns[3, :, 2] = columns[3, :, 1]  # of which there is more than one
    u, _, vh = torch.linalg.svd(columns.double(), full_matrices=False)
    found = linalg.polar_factor(columns)
    torch.testing.assert_close(found[:3].double(), (u @ vh)[:3], rtol=0, atol=1e-6)
    assert linalg.orthogonality_error(found).max() < 1e-5
    assert torch.equal(linalg.polar_factor(found), found)


def test_the_polar_factor_forgets_a_step_at_right_angles_to_the_set():
    generator = torch.Generator().manual_seed(1)
    x = torch.linalg.qr(torch.randn(30, 5, generator=generator, dtype=torch.float64)).Q
    along, away = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    step = 1e-3 * x @ (along - along.mT)
    found = linalg.polar_factor((x + step + 1e-3 * x @ (away + away.mT))[None])[0]
    torch.testing.assert_close(found, x + step, rtol=0, atol=3e-5)  # to second order


def test_power_iteration_reaches_the_spectral_norm_from_below():
    matrix = torch.randn(30, 20, generator=torch.Generator().manual_seed(5))
    vector, estimates = torch.ones(20) / 20**0.5, []
    for _ in range(200):
        norm, vector = linalg.spectral_norm_step(matrix.mv, matrix.mT.mv, vector)
        estimates.append(float(norm))
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    assert max(estimates) <= exact * (1 + 1e-5)
    assert estimates[-1] == pytest.approx(exact, rel=1e-4)
