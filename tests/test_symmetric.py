import pytest
import torch

from lit_spectral.spectra.symmetric import Reduction, symmetric_product

DTYPES = [torch.float32, torch.float64]


def gaussian(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def symmetric(dtype, size=40):
    a = gaussian(size, size, dtype=dtype)
    return a + a.T


def rounding(dtype):
    return 200 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("shape", [(70, 33), (33, 33), (5, 1)])
def test_a_symmetric_product_is_the_product(shape, by_columns, dtype):
    a = gaussian(*shape, dtype=dtype)
    a = a.T.contiguous().T if by_columns else a
    torch.testing.assert_close(symmetric_product(a), a.T @ a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reduction_has_all_eigenvalues(dtype):
    gram = symmetric(dtype)
    expected = torch.linalg.eigvalsh(gram.double())
    atol = rounding(dtype) * float(expected.abs().max())
    torch.testing.assert_close(Reduction(gram.clone()).values(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_turned_are_eigenvectors_in_the_order_of_their_places(dtype):
    gram = symmetric(dtype)
    reduction, places = Reduction(gram.clone()), [7, 0, 39, 20]
    vectors = reduction.turned(reduction.vectors_of_t(places))
    values = torch.linalg.eigvalsh(gram.double())[places]
    torch.testing.assert_close(gram.double() @ vectors, vectors * values, rtol=0, atol=100 * rounding(dtype))
    torch.testing.assert_close(vectors.norm(dim=0), torch.ones(4).double(), rtol=rounding(dtype), atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_turning_there_and_back_changes_nothing(dtype):
    reduction, columns = Reduction(symmetric(dtype)), gaussian(40, 3)
    there = reduction.turned(columns)
    assert not torch.allclose(there, columns)
    torch.testing.assert_close(reduction.turned(there, back=True), columns, rtol=0, atol=rounding(dtype))


def test_each_column_is_solved_with_its_shift():
    gram, columns, shifts = symmetric(torch.float64), gaussian(40, 3), torch.tensor([0.1, -3.0, 30.0]).double()
    reduction = Reduction(gram.clone())
    found = reduction.turned(reduction.solved(shifts, reduction.turned(columns, back=True)))
    torch.testing.assert_close(gram @ found - found * shifts, columns)


def test_a_singular_matrix_is_solved_by_0():
    reduction = Reduction(torch.zeros(4, 4))
    assert not reduction.solved(torch.zeros(1).double(), gaussian(4, 1)).any()


def test_a_matrix_in_blocks_has_vectors_of_each():
    # Its tridiagonal matrix falls apart in two; the largest values lie in the second.
    gram = torch.block_diag(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[9.0, 2.0], [2.0, 9.0]])).double()
    reduction = Reduction(gram.clone())
    vectors = reduction.turned(reduction.vectors_of_t([3, 0, 2, 1]))
    torch.testing.assert_close(gram @ vectors, vectors * torch.tensor([11.0, 1.0, 7.0, 3.0]).double())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    gram = symmetric(torch.float64)
    gram[3, 3] = value
    with pytest.raises(torch.linalg.LinAlgError, match="NaN or infinity"):
        Reduction(gram)
