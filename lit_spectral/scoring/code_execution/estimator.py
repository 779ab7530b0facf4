"""pass@k, the chance that at least one of k samples passes."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_spectral.errors import InputError

__all__ = ["pass_at_k"]


def pass_at_k(n: Tensor, c: Tensor, k: int) -> Tensor:
    """Unbiased estimate of pass@k of each problem, 1 − C(n − c, k) / C(n, k) (Chen et al., 2021, section 2.1).

    Exactly 0 where nothing passed and exactly 1 where every draw of k samples holds one that did.

    Args:
        n: samples drawn, integers of any shape.
        c: how many of them passed, 0 to n, broadcast against `n`.
        k: samples allowed, 1 to the smallest n.

    Returns:
        float64 in [0, 1], of the broadcast shape.

    Raises:
        InputError: a c outside 0 to n, a k below 1 or above an n.

    >>> pass_at_k(torch.tensor([2, 2, 2]), torch.tensor([0, 1, 2]), 1).tolist()
    [0.0, 0.5, 1.0]
    """
    if bool(((c < 0) | (c > n)).any()):
        raise InputError("pass@k: of n samples, 0 to n can have passed")
    if k < 1 or bool((n < k).any()):
        fewest = int(n.min()) if n.numel() else 0
        raise InputError(
            f"pass@{k}: k lies between 1 and the number of samples of each problem, of which one has {fewest}"
        )
    # C(n − c, k) / C(n, k), one factor a draw without replacement; a factor is 0 when k exceeds n − c.
    draw = torch.arange(k, device=n.device)
    misses = (n - c).double().unsqueeze(-1) - draw
    return 1 - (misses / (n.double().unsqueeze(-1) - draw)).prod(-1)
