"""CKA and the Procrustes residual from moments: on states whose answer is known, and against scipy and kernels."""

import pytest
import torch
from scipy.spatial import procrustes

from lit_spectral.analysis import Moments, linear_cka, procrustes_residual


def drawn(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(one, other, parts=1):
    moments = Moments()
    for x, y in zip(one.chunk(parts), other.chunk(parts), strict=True):
        moments.add(x, y)
    return linear_cka(moments), procrustes_residual(moments)


STATES = drawn(50, 6)
TURN = torch.linalg.qr(drawn(6, 6, 1)).Q
SAME = {
    "equal": STATES,
    "turned": STATES @ TURN,
    "mirrored": STATES * torch.tensor([-1, 1, 1, 1, 1, 1]),
    "shifted": STATES + drawn(1, 6, 2),
    "scaled": 3 * STATES,
    "all of these": -0.2 * STATES @ TURN + 7,
}


@pytest.mark.parametrize("other", SAME.values(), ids=SAME)
def test_states_that_are_turned_shifted_or_scaled_are_the_same(other):
    assert both(STATES, other) == pytest.approx((1, 0), abs=1e-12)


def test_states_of_orthogonal_columns_have_nothing_in_common():
    columns = torch.linalg.qr(torch.cat([torch.ones(40, 1, dtype=torch.float64), drawn(40, 8)], 1)).Q[:, 1:]
    assert both(columns[:, :4], columns[:, 4:]) == pytest.approx((0, 1), abs=1e-12)


def test_a_planted_share_is_found():
    """Of two orthonormal columns one is kept: XᵀX = I, YᵀY = I, XᵀY = diag(1, 0)."""
    columns = torch.linalg.qr(torch.cat([torch.ones(30, 1, dtype=torch.float64), drawn(30, 3)], 1)).Q[:, 1:]
    assert both(columns[:, [0, 1]], columns[:, [0, 2]]) == pytest.approx((1 / 2, 1 - (1 / 2) ** 2), abs=1e-12)


def test_they_are_the_definitions_by_kernels_and_by_scipy():
    one, other = drawn(60, 5) + 2, drawn(60, 5, 1) - drawn(60, 5) * 0.4
    x, y = one - one.mean(0), other - other.mean(0)
    kernels = x @ x.mT, y @ y.mT
    cka = (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    disparity = procrustes(one.numpy(), other.numpy())[2]
    assert both(one, other) == pytest.approx((float(cka), disparity), rel=1e-10)


def test_parts_add_up_and_widths_may_differ():
    one, other = drawn(60, 5), drawn(60, 3, 1) + drawn(60, 5)[:, :3]
    assert both(one, other, 7) == pytest.approx(both(one, other), rel=1e-12)


def test_a_large_mean_costs_no_digits():
    mean = torch.zeros(6, dtype=torch.float64)
    mean[2] = 3000.0  # as of a decoder's massive activations
    assert both(STATES + mean, SAME["turned"] + 0.1 * drawn(50, 6, 3) + mean) == pytest.approx(
        both(STATES, SAME["turned"] + 0.1 * drawn(50, 6, 3)), rel=1e-7
    )


def test_states_without_variance_have_no_likeness():
    found = both(STATES, torch.ones(50, 6, dtype=torch.float64) * 0)
    assert all(each != each for each in found)
    with pytest.raises(ValueError, match="no states"):
        linear_cka(Moments())
