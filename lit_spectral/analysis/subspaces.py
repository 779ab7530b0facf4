"""Where a change lies: beside singular subspaces of W₀, its own, and random ones.

U (out, k) and V (in, k) are orthonormal bases; what is read in float32 is computed in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_spectral.spectra import SingularTriplets
from lit_spectral.updates.delta import Delta

__all__ = [
    "Inside",
    "Projections",
    "gain_correlation",
    "inside",
    "projected_norm",
    "projections",
    "random_basis",
    "similarity",
]


def similarity(one: Tensor, other: Tensor) -> float:
    """φ(A, B) = ‖AᵀB‖_F² / r of orthonormal A and B (m, r): 0 orthogonal, 1 one subspace (MiLoRA A.1, Fig. 3).

    Two random subspaces have r / m on average.

    Raises:
        ValueError: the shapes differ.
    """
    if one.shape != other.shape:
        raise ValueError(f"subspaces of one dimension are compared, not {tuple(one.shape)} and {tuple(other.shape)}")
    return float((one.double().mT @ other.double()).square().sum()) / one.shape[1]


def random_basis(rows: int, rank: int, seed: int) -> Tensor:
    """An orthonormal basis (rows, rank) of a random subspace, float64: singular vectors of a Gaussian matrix."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randn(rows, rank, generator=generator, dtype=torch.float64, device="cpu")
    basis: Tensor = torch.linalg.qr(drawn).Q
    return basis


def projected_norm(weight: Tensor, u: Tensor, v: Tensor) -> float:
    """‖Uᵀ W V‖_F for W (out, in)."""
    return float(torch.linalg.matrix_norm(u.double().mT @ (weight.double() @ v.double())))


class Inside(NamedTuple):
    """ΔW in the basis of W₀'s leading singular vectors.

    `core` Uᵀ ΔW V, (k, k), whose diagonal are the gains on W₀'s singular directions: δ of HiP-LoRA, whose residual has
    none. `both` ‖Uᵀ ΔW V‖_F², `left` ‖Uᵀ ΔW‖_F² and `right` ‖ΔW V‖_F², each as a share of ‖ΔW‖_F², 0 to 1; one-sided
    shares are ρ_k (OPLoRA, 2510.13003). NaN where ΔW is 0.
    """

    core: Tensor
    both: float
    left: float
    right: float


def inside(delta: Delta, basis: SingularTriplets) -> Inside:
    """How much of a change lies in a basis, thin factors staying thin.

    Args:
        delta: thin, or dense; a part that multiplies W₀ is to be made dense before.
        basis: U (out, k) and V (in, k); its σ isn't looked at.
    """
    u, v = basis.u.double(), basis.v.double()
    if delta.is_thin and delta.factors is not None:
        left, right = (factor.double() for factor in delta.factors)
        from_left, from_right = (u.mT @ left) @ right, left @ (right @ v)
        total = (left.mT @ left * (right @ right.mT)).sum()
    else:
        matrix = delta.dense(dtype=torch.float64)
        from_left, from_right, total = u.mT @ matrix, matrix @ v, matrix.square().sum()
    core = from_left @ v
    shares = [float(part.square().sum() / total) for part in (core, from_left, from_right)]
    return Inside(core, *shares)


def gain_correlation(gains: Tensor, sigma: Tensor) -> float:
    """Spearman's correlation of |gain| and σ over singular directions, both (k,), −1 to 1 (HiP-LoRA Fig. 4).

    Below 0 the larger a singular value is the less it was changed. NaN where all of either are equal.
    """
    from scipy.stats import spearmanr

    sizes, values = gains.abs(), sigma
    if len(sizes) < 2 or bool((sizes == sizes[0]).all()) or bool((values == values[0]).all()):
        return float("nan")
    return float(spearmanr(sizes.numpy(), values.numpy()).statistic)


class Projections(NamedTuple):
    """‖UᵀWV‖_F for W₀ and ΔW, U and V the r leading singular vectors of either or of a random matrix.

    (FCLoRA Table 7, HiLoRA Table 3, MiLoRA Tables 5 and 11, after Hu et al., 2021.)

    `weight_in_delta`, `weight_in_weight` and `weight_in_random` are W₀'s; `delta_in_delta` and `delta_in_weight` are
    ΔW's. `amplification` is ‖ΔW‖_F / `weight_in_delta`, Factor W→ΔW of FCLoRA: how much louder ΔW is than what W₀ had
    there; MiLoRA has `delta_in_delta` above, which is ‖ΔW‖_F where r is ΔW's rank. `novelty` is ‖ΔW‖_F /
    `delta_in_weight`, Factor ΔW→W: how much of ΔW isn't in what W₀ mostly does. Infinite where they divide by 0.
    """

    weight_in_delta: float
    weight_in_weight: float
    weight_in_random: float
    delta_in_delta: float
    delta_in_weight: float
    amplification: float
    novelty: float


def projections(
    weight: Tensor,
    delta: Delta,
    own: SingularTriplets,
    top: SingularTriplets,
    random: tuple[Tensor, Tensor],
    frobenius: float,
) -> Projections:
    """Of one map.

    Args:
        weight: W₀ (out, in).
        delta: ΔW, thin or dense.
        own: ΔW's r leading triplets, r at least 1.
        top: W₀'s r leading triplets.
        random: orthonormal bases (out, r) and (in, r).
        frobenius: ‖ΔW‖_F.
    """
    in_delta = projected_norm(weight, own.u, own.v)
    in_weight = float(torch.linalg.matrix_norm(inside(delta, top).core))
    return Projections(
        in_delta,
        float(top.sigma.double().norm()),
        projected_norm(weight, *random),
        float(own.sigma.norm()),
        in_weight,
        _over(frobenius, in_delta),
        _over(frobenius, in_weight),
    )


def _over(above: float, below: float) -> float:
    return above / below if below > 0 else float("inf")
