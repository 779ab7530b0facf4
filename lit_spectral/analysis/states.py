"""How alike two models' hidden states of the same tokens are, from second moments alone.

X (n, d) and Y (n, e) are the states of n tokens, centred: each column's mean is 0. All that is asked of them are the
moments XᵀX, YᵀY and XᵀY, whose size doesn't grow with the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "linear_cka", "procrustes_residual"]


class Moments:
    """Of two models' states of the same tokens, which may come in parts; in float64 on the states' device."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sums: list[Tensor] = []
        self._products: list[Tensor] = []

    def add(self, one: Tensor, other: Tensor) -> None:
        """States (n, d) and (n, e) of n more tokens."""
        x, y = one.double(), other.double()
        sums, products = [x.sum(0), y.sum(0)], [x.mT @ x, y.mT @ y, x.mT @ y]
        self._sums = [*torch._foreach_add(self._sums, sums)] if self.tokens else sums
        self._products = [*torch._foreach_add(self._products, products)] if self.tokens else products
        self.tokens += len(x)

    def centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """XᵀX (d, d), YᵀY (e, e) and XᵀY (d, e).

        Raises:
            ValueError: there are no states.
        """
        if not self.tokens:
            raise ValueError("no states were added")
        (x, y), (xx, yy, xy) = self._sums, self._products
        return tuple(product - torch.outer(left, right) / self.tokens  # type: ignore[return-value]
                     for product, left, right in ((xx, x, x), (yy, y, y), (xy, x, y)))  # fmt: skip


def linear_cka(moments: Moments) -> float:
    """‖XᵀY‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F), 0 to 1 (centred kernel alignment, Kornblith et al., 2019, 1905.00414 §3).

    1 where one set of states is the other turned, mirrored, shifted or scaled as a whole; directions of much variance
    count most. NaN where either has no variance.
    """
    one, other, cross = (torch.linalg.matrix_norm(each) for each in moments.centred())
    return float(cross.square() / (one * other)) if one > 0 and other > 0 else float("nan")


def procrustes_residual(moments: Moments) -> float:
    """What no rotation explains: min ‖X − c Y Q‖_F² / ‖X‖_F² over orthogonal Q (e, d) and numbers c; 0 to 1.

    It is 1 − ‖XᵀY‖_*² / (‖X‖_F² ‖Y‖_F²), with the nuclear norm (Schönemann, 1966; with a scale Schönemann and Carroll,
    1970; beside CKA Ding et al., 2021, 2108.01661), and the same either way round. 0 where one set of states is the
    other turned, mirrored, shifted or scaled as a whole. NaN where either has no variance.
    """
    one, other, cross = moments.centred()
    total = one.trace() * other.trace()
    if not total > 0:
        return float("nan")
    explained = torch.linalg.svdvals(cross).sum().square() / total
    return float((1 - explained).clamp(0, 1))
