"""StelLA and EBLoRA beside their equations, written out in float64."""

import lightning.pytorch as pl
import pytest
import torch
from conftest import Watch
from torch import nn

from lit_spectral.adapters import EqualGainAdapter, StiefelAdapter, adapters
from lit_spectral.errors import InputError
from lit_spectral.methods import EBLoRA, LoRA, StelLA
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


def test_eblora_has_equal_singular_values_whose_number_has_a_plain_gradient():
    torch.manual_seed(0)
    made = EqualGainAdapter(nn.Linear(12, 9), rank=3, scale=2.0)
    nn.init.constant_(made.gain, -0.7)
    expected = torch.tensor([1.4] * 3 + [0.0] * 6)
    torch.testing.assert_close(torch.linalg.svdvals(made.delta_weight()), expected, rtol=0, atol=1e-6)
    made = made.double()
    (made(X) * Y).sum().backward()
    plain = 2.0 * (Y.mT @ X * (made.u @ made.v.mT)).sum()
    torch.testing.assert_close(made.gain.grad[0], plain.detach())


def test_values_stay_equal_while_eblora_trains(train):
    found = []

    def look(task):
        for adapter in adapters(task.model):
            values = torch.linalg.svdvals(adapter.delta_weight().double())[:4]
            found.append((float(values[0]), float(values[0] - values[3])))

    train(EBLoRA(rank=4), Watch(look), max_steps=4)
    assert all(gap <= 1e-5 * largest for largest, gap in found)
    assert min(largest for largest, _ in found[-4:]) > 0


def test_eblora_refuses_to_begin_at_unequal_values(train, tmp_path):
    train(LoRA(rank=4), max_steps=2).save_checkpoint(tmp_path / "first.ckpt")
    with pytest.raises(InputError, match=r"EBLoRA goes on with changes of 4 equal singular values alone"):
        train(EBLoRA(rank=4, start_from=str(tmp_path / "first.ckpt")), max_steps=1)


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
