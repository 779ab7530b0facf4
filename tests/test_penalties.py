import pytest
import torch
from torch import nn

from lit_spectral.adapters import SVDAdapter
from lit_spectral.spectra import linalg
from lit_spectral.tasks import penalties


@pytest.fixture
def penalised():
    """Three adapters of two shapes and two weights, with gradients."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for out, into, weight in ((12, 8, 0.5), (8, 8, 0.5), (12, 8, 2.0)):
        u, v = torch.randn(out, 3, generator=generator), torch.randn(into, 3, generator=generator)
        adapter = SVDAdapter(nn.Linear(into, out), u, v, torch.ones(3), 1.0, penalty_weight=weight)
        for parameter in (adapter.u, adapter.v):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        found.append(adapter)
    return found


def reference(adapter):
    """γR of one adapter by the definition, in float64, and its gradients by autograd."""
    columns = [adapter.u.detach().double().requires_grad_(), adapter.v.detach().double().requires_grad_()]
    value = sum(torch.linalg.matrix_norm(c.T @ c - torch.eye(3)) for c in columns) * adapter.penalty_weight
    return value, torch.autograd.grad(value, columns)


def test_the_value_is_that_of_the_definition(penalised):
    expected = sum(float(reference(adapter)[0].detach()) for adapter in penalised)
    assert float(penalties.add_orthogonality_gradients(penalised)) == pytest.approx(expected, rel=1e-6)
    assert float(penalties.pull_to_orthogonality(penalised, lr=1e-4)) == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_that_of_autograd_in_float64(penalised):
    expected = [p.grad.double() + g for a in penalised for p, g in zip((a.u, a.v), reference(a)[1], strict=True)]
    penalties.add_orthogonality_gradients(penalised)
    found = [p.grad.double() for a in penalised for p in (a.u, a.v)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_short_pull_is_a_step_along_the_gradient(penalised):
    columns = torch.stack([penalised[0].u.detach(), penalised[2].u.detach()]).double()
    expected = columns - 1e-3 * linalg.orthogonality_gradient(columns)[0]
    torch.testing.assert_close(linalg.orthogonality_pull(columns, 1e-3, longest=1.0)[0], expected)


def test_long_pulls_settle_at_orthonormal_columns(penalised):
    for adapter in penalised:
        for parameter in (adapter.u, adapter.v):
            parameter.data = torch.linalg.qr(parameter.data)[0] + 0.02 * parameter.data
    for _ in range(5):
        penalties.pull_to_orthogonality(penalised, lr=1.0)
    for adapter in penalised:
        torch.testing.assert_close(adapter.u.T @ adapter.u, torch.eye(3), rtol=0, atol=1e-6)


def test_a_pull_moves_no_entry_further_than_adam_would(penalised):
    """From near 0, where a pull grows whatever is there."""
    lr = 1e-3
    for adapter in penalised:
        adapter.u.data *= 1e-2
    before = [adapter.u.detach().clone() for adapter in penalised]
    penalties.pull_to_orthogonality(penalised, lr=lr)
    moves = [float((a.u - b).norm() / b.numel() ** 0.5) for a, b in zip(penalised, before, strict=True)]
    assert 0 < max(moves) <= lr * (1 + 1e-5)
