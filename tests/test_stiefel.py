"""StelLA beside its equations, written out in float64."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lit_spectral.adapters import StiefelAdapter, adapters
from lit_spectral.methods import StelLA
from lit_spectral.tasks import SequenceClassification

X = torch.randn(7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randn(7, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    made = StiefelAdapter(nn.Linear(12, 9), rank=3, scale=2.0).double()
    nn.init.normal_(made.gain)
    return made


def change(u, s, v):
    return 2.0 * u @ s @ v.mT


def test_gradients_are_riemannian_ones_and_those_of_s_are_plain(adapter):
    u, s, v = (p.detach().clone().requires_grad_() for p in (adapter.u, adapter.gain, adapter.v))
    out = nn.functional.linear(X, adapter.weight + change(u, s, v), adapter.bias)
    (out * Y).sum().backward()
    (adapter(X) * Y).sum().backward()
    torch.testing.assert_close(adapter.gain.grad, s.grad)
    for found, columns in ((adapter.u.grad, u), (adapter.v.grad, v)):
        expected = columns.grad - columns.detach() @ columns.grad.mT @ columns.detach()
        torch.testing.assert_close(found, expected)
        tilt = columns.detach().mT @ found
        # Tangent to orthonormal columns, which U and V are to float32's rounding.
        torch.testing.assert_close(tilt, -tilt.mT, rtol=0, atol=1e-4)


def test_all_singular_values_are_those_of_s(adapter):
    expected = 2 * torch.linalg.svdvals(adapter.gain.detach().double())
    torch.testing.assert_close(torch.linalg.svdvals(adapter.delta_weight().double())[:3], expected, rtol=1e-5, atol=0)


def test_a_step_ends_at_the_polar_factors_of_where_the_optimizer_went(train, backbone_folder):
    def sgd(params):
        return torch.optim.SGD(params, lr=500.0)

    class Look(pl.Callback):
        ends, off, moved = {}, [], []

        def on_train_start(self, trainer, pl_module):
            for adapter in adapters(pl_module.model):
                nn.init.normal_(adapter.gain)  # at 0 U and V have no gradient

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            factors = {id(p) for adapter in adapters(pl_module.model) for p in adapter.orthonormal}
            for group in optimizer.param_groups:
                for p in (p for p in group["params"] if id(p) in factors):
                    u, _, vh = torch.linalg.svd((p.detach() - group["lr"] * p.grad).double(), full_matrices=False)
                    self.ends[p] = u @ vh
                    self.moved.append(float((self.ends[p] - p.detach()).norm()))

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.off += [float((p.detach() - end).abs().max()) for p, end in self.ends.items()]

    look, method = Look(), StelLA(rank=4, target_modules=["query"])
    train(
        None,
        look,
        task=SequenceClassification(backbone_folder("bert"), method, optimizer=sgd),
        max_steps=3,
        gradient_clip_val=None,
    )
    assert max(look.off) < 1e-6
    assert max(look.moved) > 0.01
