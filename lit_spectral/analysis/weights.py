"""How W₀'s singular values fall: quartiles, a fitted decay, and how many it takes to come near the matrix.

Here (m,) are all singular values of a matrix, falling, m being its smaller side. Papers: HiLoRA (Fig. 1 b, Fig. 6,
App. C) and FCLoRA (Fig. 5, App. H), who show that pretrained weights need most of their values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_spectral.spectra.linalg import factor_spectrum

__all__ = ["Decay", "error_curve", "exponential_decay", "ideal_low_rank", "quartiles", "width"]

# Of the smaller side, for one rank of an ideal matrix: 64 for 768, as in the papers' figures.
SHARE = 12


class Decay(NamedTuple):
    """σₙ / σ₁ ≈ C e^(−αn), n = 1 … m: `constant` C, `rate` α a singular value, `error` the root of the mean square."""

    constant: float
    rate: float
    error: float


def exponential_decay(sigma: Tensor) -> Decay:
    """The decay nearest to singular values (m,), by least squares (FCLoRA eq. 22, HiLoRA eq. 11).

    The papers don't say how they fit; this is the fit of the values over the largest, not of their logarithms, in
    which a matrix of low rank has none. Of a matrix that is 0, or has one value alone, all is NaN.
    """
    from scipy.optimize import curve_fit

    if len(sigma) < 2 or not sigma[0] > 0:
        return Decay(*[float("nan")] * 3)
    values = (sigma.double() / sigma[0].double()).numpy()
    numbers = np.arange(1.0, len(values) + 1)

    def curve(n: np.ndarray, constant: float, rate: float) -> np.ndarray:
        return constant * np.exp(-rate * n)

    def slopes(n: np.ndarray, constant: float, rate: float) -> np.ndarray:
        falling = np.exp(-rate * n)
        return np.stack([falling, -constant * n * falling], axis=1)

    # The sum of e^(−αn) is about 1/α. A rate above 50 takes all but the first value below rounding.
    start = (1.0, min(1 / values.sum(), 1.0))
    bounds = ([0.0, -1.0 / len(values)], [np.inf, 50.0])
    found, _ = curve_fit(curve, numbers, values, start, jac=slopes, bounds=bounds, xtol=1e-12, ftol=1e-12)
    error = float(np.sqrt(np.mean(np.square(curve(numbers, *found) - values))))
    return Decay(float(found[0]), float(found[1]), error)


def error_curve(sigma: Tensor) -> Tensor:
    """E(n) = ‖W − Wₙ‖_F / ‖W‖_F for n = 0 … m, (m + 1,) in float64, 1 to 0, Wₙ the nearest matrix of rank n.

    FCLoRA eq. 23, HiLoRA eq. 12, there in per cent. The Kolmogorov n-width itself, in the spectral norm, is σₙ₊₁. Of a
    matrix that is 0 all are 0.
    """
    squares = sigma.double().square()
    tails = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    return (tails / tails[0].clamp_min(torch.finfo(torch.float64).tiny)).sqrt()


def width(curve: Tensor, error: float = 0.05) -> int:
    """The smallest n with E(n) ≤ error, of an `error_curve`; 5 % is marked in FCLoRA's Fig. 5."""
    return int((curve > error).sum())


def ideal_low_rank(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Singular values over the largest, (m,) in float64, of a random matrix (out, in) of low rank.

    A product of two Gaussian factors, of rank 64 where the smaller side is 768 and in that proportion elsewhere. The
    papers show one of rank 64 and don't say which: theirs is within 5 % from 63 values on, this one from 64.
    """
    smaller = min(shape)
    rank = max(1, round(smaller / SHARE))
    generator = torch.Generator("cpu").manual_seed(seed)
    left, right = (torch.randn(1, *each, generator=generator, dtype=torch.float64, device="cpu")
                   for each in ((shape[0], rank), (rank, shape[1])))  # fmt: skip
    values = factor_spectrum(left, right).values[0]
    found = values.new_zeros(smaller)
    found[:rank] = values / values[0]
    return found


def quartiles(sigma: Tensor) -> list[float]:
    """The 25th, 50th and 75th percentile and the largest: σ⁽¹⁾ … σ⁽⁴⁾ as this project's bounds count them."""
    levels = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    found: list[float] = sigma.double().quantile(levels).tolist()
    return found
