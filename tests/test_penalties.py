import pytest
import torch
from torch import nn

from lit_spectral.adapters import SVDAdapter
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
    assert float(penalties.orthogonality_penalty(penalised)) == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_that_of_autograd_in_float64(penalised):
    expected = [p.grad.double() + g for a in penalised for p, g in zip((a.u, a.v), reference(a)[1], strict=True)]
    penalties.add_orthogonality_gradients(penalised)
    found = [p.grad.double() for a in penalised for p in (a.u, a.v)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_short_pull_is_a_step_along_the_gradient(penalised):
    step = 1e-6
    expected = [
        p.detach().double() - step * penalties.DECOUPLED_SCALE * g
        for a in penalised
        for p, g in zip((a.u, a.v), reference(a)[1], strict=True)
    ]
    penalties.pull_to_orthogonality(penalised, lr=step)
    found = [p.detach().double() for a in penalised for p in (a.u, a.v)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_long_pulls_settle_at_orthonormal_columns(penalised):
    for adapter in penalised:
        for parameter in (adapter.u, adapter.v):
            parameter.data = torch.linalg.qr(parameter.data)[0] + 0.02 * parameter.data
    for _ in range(5):
        penalties.pull_to_orthogonality(penalised, lr=1.0)
    for adapter in penalised:
        torch.testing.assert_close(adapter.u.T @ adapter.u, torch.eye(3), rtol=0, atol=1e-6)
