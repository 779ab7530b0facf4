"""A given change as an adapter's parameters: its singular triplets, and factors of a rank that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lit_spectral.adapters.linear import weight_matrix
from lit_spectral.sharding import whole
from lit_spectral.spectra import SingularTriplets

if TYPE_CHECKING:
    from lit_spectral.adapters.base import Adapter
    from lit_spectral.adapters.low_rank import FactoredAdapter
    from lit_spectral.updates import Delta, Pair

__all__ = ["check_ball", "check_outside", "check_rank", "largest", "product_triplets", "put_product", "triplets_of"]

# Of the largest singular value: what is below is float32's rounding of a change.
ROUNDING = 1e-6
# As a part of a change's size: how far out of an adapter's sets it may be when training begins.
SLACK = 1e-4


def triplets_of(delta: Delta, base_layer: nn.Module) -> SingularTriplets:
    """Those of ΔW (out, in) that are more than rounding, float64, on the CPU; W₀ is the layer's."""
    weight = None if delta.hadamard is None else whole(weight_matrix(base_layer)).cpu()
    return _significant(*delta.svd(weight))


def product_triplets(left: Tensor, right: Tensor, beside: float | None = None) -> SingularTriplets:
    """Those of left (out, m) @ rightᵀ, right (in, m), that are more than rounding, float64.

    Args:
        left: the columns.
        right: the rows, as columns.
        beside: singular value that rounding is a part of; None for the product's own largest.
    """
    (q_left, corner_left), (q_right, corner_right) = (torch.linalg.qr(each.double().cpu()) for each in (left, right))
    u, sigma, vt = torch.linalg.svd(corner_left @ corner_right.mT, full_matrices=False)
    return _significant(q_left @ u, sigma, q_right @ vt.mT, beside)


def check_rank(given: SingularTriplets, rank: int, setting: str = "rank") -> None:
    """ValueError, with the remedies, if a change has a higher rank than the adapter."""
    if (needed := len(given.sigma)) > rank:
        raise ValueError(
            f"{setting} {rank}, and the change has rank {needed}; give --model.method.{setting} {needed}, or truncate "
            f"the change first: lit-spectral export --rank {rank}"
        )


@torch.no_grad()
def put_product(
    left: nn.Parameter,
    right: nn.Parameter,
    given: SingularTriplets,
    factors: Pair | None = None,
    scale: float = 1.0,
    setting: str = "rank",
) -> None:
    """Set L (out, r) and R (r, in) such that scale · L R is a given change; where that needs less, L is 0 and R stays.

    Args:
        left: L.
        right: R.
        given: the change.
        factors: that it has already, which are taken if there is room, so that training goes on as it was.
        scale: s.
        setting: what the method calls the rank.

    Raises:
        ValueError: the change has a higher rank.
    """
    rank = left.shape[1]
    # A row that is 0 would never learn where its column is 0 too, as in factors that were padded.
    if factors is not None and len(factors.right) <= rank and bool(factors.right.any(1).all()):
        new_left, new_right = factors.left / scale, factors.right
    else:
        check_rank(given, rank, setting)
        root = (given.sigma / scale).sqrt()
        new_left, new_right = given.u * root, (given.v * root).mT
    count = len(new_right)
    left.zero_()[:, :count] = new_left.to(left)
    right[:count] = new_right.to(right)


def largest(given: SingularTriplets) -> float:
    """‖ΔW‖₂."""
    return float(given.sigma[0]) if len(given.sigma) else 0.0


def check_ball(adapter: Adapter, given: SingularTriplets) -> None:
    """ValueError, with the remedy, for a change that is outside of an adapter's balls."""
    if adapter.ball_radius is not None and largest(given) > adapter.ball_radius * (1 + SLACK):
        raise ValueError(
            f"its largest singular value {largest(given):.4g} is above the ball's {adapter.ball_radius:.4g}; contract "
            "it first (lit-spectral mend --ball, with the same bound), or give a larger --model.method.ball"
        )
    size = float(given.sigma.norm())
    if adapter.frobenius_radius is not None and size > adapter.frobenius_radius * (1 + SLACK):
        raise ValueError(
            f"its Frobenius norm {size:.4g} is above the bound {adapter.frobenius_radius:.4g}; scale it down first "
            "(lit-spectral mend --scale), or give a larger --model.method.frobenius"
        )


def check_outside(adapter: FactoredAdapter, given: SingularTriplets, size: float) -> None:
    """ValueError, with the remedy, for a change that an adapter's projections would alter.

    Args:
        adapter: that is to begin there.
        given: the change, or what of it the adapter's own factors are to hold.
        size: ‖·‖_F of the change.
    """
    inside = [
        float((basis.double().cpu().mT @ vectors * given.sigma).norm())
        for vectors, bases in zip((given.u, given.v), adapter.kept_out_of(), strict=True)
        for basis in bases
    ]
    if max(inside, default=0.0) > SLACK * size:
        raise ValueError(
            f"{100 * max(inside) / size:.2g} % of its size lies where this method keeps out of; take it out first "
            "(lit-spectral mend --principal_rank, --input_rank), or give LoRA, or FCLoRA with input_rank: 0, without "
            "`after`"
        )


def _significant(u: Tensor, sigma: Tensor, v: Tensor, beside: float | None = None) -> SingularTriplets:
    floor = ROUNDING * (float(sigma[0]) if beside is None else beside)
    count = int((sigma > floor).sum())
    return SingularTriplets(u[:, :count], sigma[:count], v[:, :count])
