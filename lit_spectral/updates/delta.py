"""A change of one weight, ΔW = L R + W₀ ⊙ (A B) + D, and what can be done with it without a model.

Thin factors stay thin: sums are factors side by side, singular values come from QR of both factors and a small SVD.
What must be dense (D, and the part that multiplies W₀) is made dense when it is asked for, and not kept.

Shape suffixes: `o` output features, `i` input features, `r` rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_spectral.spectra.linalg import contract_to_spectral_ball, factor_spectrum

__all__ = ["PARTS", "Delta", "Pair", "Truncated", "kept_rank"]

# What a change's tensors are called where they are kept by name.
PARTS = ("left", "right", "hadamard_left", "hadamard_right", "matrix")


class Pair(NamedTuple):
    """Thin factors of left @ right, (out, r) and (r, in), float32."""

    left: Tensor
    right: Tensor

    def padded(self, rank: int) -> Pair:
        """The same product in `rank` factors, at least as many as there are, by zeros."""
        more = rank - len(self.right)
        return Pair(F.pad(self.left, (0, more)), F.pad(self.right, (0, 0, 0, more)))


class _Reflections(NamedTuple):
    """X = Q `corner`, with Q as Householder's reflections (m, r) and their scales: forming Q is half of a QR's time."""

    vectors: Tensor
    scales: Tensor
    corner: Tensor

    @staticmethod
    def of(columns: Tensor) -> _Reflections:
        """Of X (m, r)."""
        packed, scales = torch.geqrf(columns)
        return _Reflections(packed[:, : len(scales)], scales, packed[: len(scales)].triu())

    def lifted(self, small: Tensor) -> Tensor:
        """Q times a matrix with as many rows as Q has columns."""
        padded = small.new_zeros(len(self.vectors), small.shape[1])
        padded[: len(small)] = small
        return torch.ormqr(self.vectors, self.scales, padded)


class Truncated(NamedTuple):
    """A change of low rank, and ‖what was cut off‖_F over ‖ΔW‖_F, 0 to 1; 0 where nothing was."""

    delta: Delta
    error: float


@dataclass(frozen=True)
class Delta:
    """ΔW (out, in) = L R + W₀ ⊙ (A B) + D; a part that is None is 0, and at least one is there.

    Args:
        factors: (L, R), any scale inside.
        hadamard: (A, B), of a part that multiplies W₀ entry by entry (HiRA eq. 6).
        matrix: D, float32.

    Methods that take `weight` need W₀ (out, in) where there is a Hadamard part, and raise ValueError without it.
    """

    factors: Pair | None = None
    hadamard: Pair | None = None
    matrix: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        if self.matrix is not None:
            return self.matrix.shape[0], self.matrix.shape[1]
        pair = self.factors or self.hadamard
        assert pair is not None
        return len(pair.left), pair.right.shape[1]

    @property
    def is_thin(self) -> bool:
        """Whether ΔW is a product of thin factors and nothing else."""
        return self.hadamard is None and self.matrix is None

    @property
    def rank(self) -> int:
        """Columns of L; of a change that isn't thin the smaller side."""
        return self.factors.left.shape[1] if self.is_thin and self.factors else min(self.shape)

    def tensors(self) -> Iterable[Tensor]:
        """All that it is made of."""
        yield from self.parts().values()

    def parts(self) -> dict[str, Tensor]:
        """All that it is made of, by its names in `PARTS`."""
        all_of_them = (*(self.factors or (None, None)), *(self.hadamard or (None, None)), self.matrix)
        return {name: tensor for name, tensor in zip(PARTS, all_of_them, strict=True) if tensor is not None}

    @staticmethod
    def of_parts(parts: Mapping[str, Tensor]) -> Delta:
        """What `parts` gave; a pair of which one is lacking is none."""
        given = [parts.get(name) for name in PARTS]
        factors, hadamard = (
            Pair(left, right) if left is not None and right is not None else None
            for left, right in (given[:2], given[2:4])
        )
        return Delta(factors, hadamard, given[4])

    def dense(self, weight: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """ΔW (out, in), computed in `dtype`, where its tensors lie."""
        if self.matrix is None:
            total = torch.zeros(self.shape, dtype=dtype, device=next(iter(self.tensors())).device)
        else:
            total = self.matrix.to(dtype, copy=True)
        if self.factors is not None:
            total.addmm_(self.factors.left.to(dtype), self.factors.right.to(dtype))
        if self.hadamard is not None:
            if weight is None:
                raise ValueError("the change multiplies the backbone's weight, which is not given")
            total.addcmul_(weight.to(dtype), self.hadamard.left.to(dtype) @ self.hadamard.right.to(dtype))
        return total

    def scaled(self, factor: float) -> Delta:
        """Factor · ΔW."""
        return Delta(
            _scaled(self.factors, factor),
            _scaled(self.hadamard, factor),
            None if self.matrix is None else self.matrix * factor,
        )

    @staticmethod
    def added(deltas: Iterable[Delta]) -> Delta:
        """The sum of changes of one shape: factors side by side, exact.

        Raises:
            ValueError: shapes differ, or there is none.
        """
        given = list(deltas)
        if len({delta.shape for delta in given}) != 1:
            raise ValueError("changes of one weight have one shape; these have " + (_shapes(given) or "none"))
        matrices = [delta.matrix for delta in given if delta.matrix is not None]
        return Delta(
            _side_by_side(delta.factors for delta in given),
            _side_by_side(delta.hadamard for delta in given),
            torch.stack(matrices).sum(0) if matrices else None,
        )

    def singular_values(self, weight: Tensor | None = None) -> Tensor:
        """Falling, float64, (r,) of thin factors, all of the smaller side otherwise."""
        if self.is_thin and self.factors is not None:
            left, right = self.factors
            count = min(*self.shape, left.shape[1])
            return factor_spectrum(left.unsqueeze(0), right.unsqueeze(0)).values[0, :count]
        values: Tensor = torch.linalg.svdvals(self.dense(weight, torch.float64))
        return values

    def svd(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """U (out, r), σ (r,) falling, V (in, r), float64: of thin factors by QR of both and a small SVD."""
        sigma, leading = self._spectrum(weight)
        u, v = leading(len(sigma))
        return u, sigma, v

    def _spectrum(self, weight: Tensor | None) -> tuple[Tensor, Callable[[int], tuple[Tensor, Tensor]]]:
        """σ, and what gives so many leading singular vectors: those of a sum are most of its time, and few are kept."""
        if self.is_thin and self.factors is not None:
            left, right = (_Reflections.of(columns.double()) for columns in (self.factors.left, self.factors.right.mT))
            u, sigma, vt = torch.linalg.svd(left.corner @ right.corner.mT, full_matrices=False)
            return sigma, lambda count: (left.lifted(u[:, :count]), right.lifted(vt[:count].mT))
        u, sigma, vt = torch.linalg.svd(self.dense(weight, torch.float64), full_matrices=False)
        return sigma, lambda count: (u[:, :count], vt[:count].mT)

    @staticmethod
    def of_triplets(u: Tensor, sigma: Tensor, v: Tensor) -> Delta:
        """U diag(σ) Vᵀ as factors of equal size, float32: √σ on either side."""
        root = sigma.clamp_min(0).sqrt()
        return Delta(Pair((u * root).float().contiguous(), (v * root).mT.float().contiguous()))

    def truncated(
        self, rank: int | None = None, energy: float | None = None, weight: Tensor | None = None
    ) -> Truncated:
        """The nearest change of a rank, at least 1, or the smallest rank that keeps an energy of Σσ², in (0, 1].

        With both the smaller rank of the two; with neither ΔW itself, in as few factors as it has a rank.
        """
        sigma, leading = self._spectrum(weight)
        kept = kept_rank(sigma, rank, energy)
        u, v = leading(kept)
        squares = sigma.square()
        total = float(squares.sum())
        error = (float(squares[kept:].sum()) / total) ** 0.5 if total > 0 else 0.0
        return Truncated(Delta.of_triplets(u, sigma[:kept], v), error)

    def contracted(self, radius: float, weight: Tensor | None = None) -> Delta:
        """The nearest change with ‖·‖₂ ≤ radius (Frobenius): singular values above it become the radius."""
        if self.is_thin and self.factors is not None:
            left, right = self.factors
            radii = torch.tensor([radius], dtype=torch.float64)
            held = contract_to_spectral_ball(left.unsqueeze(0), right.unsqueeze(0), radii)[0]
            return Delta(Pair(held.float(), right))
        u, sigma, v = self.svd(weight)
        if float(sigma[0]) <= radius:
            return self
        return Delta(matrix=((u * sigma.clamp_max(radius)) @ v.mT).float())

    def outside(self, u: Tensor | None, v: Tensor | None, weight: Tensor | None = None) -> Delta:
        """(1 − U Uᵀ) ΔW (1 − V Vᵀ) for orthonormal U (out, k) and V (in, k); None for either side as it is."""
        if self.is_thin and self.factors is not None:
            left, right = self.factors
            return Delta(Pair(_without(left, u), _without(right.mT, v).mT.contiguous()))
        matrix = _without(self.dense(weight), u)
        return Delta(matrix=_without(matrix.mT, v).mT.contiguous())

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Delta:
        """The same with every tensor in a dtype, on a device; None for its own."""
        matrix = None if self.matrix is None else self.matrix.to(device, dtype)
        factors, hadamard = (
            pair and Pair(*(tensor.to(device, dtype) for tensor in pair)) for pair in (self.factors, self.hadamard)
        )
        return replace(self, factors=factors, hadamard=hadamard, matrix=matrix)


def kept_rank(sigma: Tensor, rank: int | None, energy: float | None) -> int:
    """How many of falling singular values (r,) to keep, at least 1; those that are rounding's count for nothing."""
    if not sigma.any():
        return 1
    kept = max(1, int((sigma > 1e-10 * sigma[0]).sum()))
    if rank is not None:
        kept = min(kept, rank)
    if energy is not None:
        shares = sigma.square().cumsum(0) / sigma.square().sum()
        kept = min(kept, int((shares < energy * (1 - 1e-12)).sum()) + 1)
    return kept


def _scaled(pair: Pair | None, factor: float) -> Pair | None:
    return pair and Pair(pair.left * factor, pair.right)


def _side_by_side(pairs: Iterable[Pair | None]) -> Pair | None:
    given = [pair for pair in pairs if pair is not None]
    if not given:
        return None
    return Pair(torch.cat([pair.left for pair in given], dim=1), torch.cat([pair.right for pair in given]))


def _without(columns: Tensor, basis: Tensor | None) -> Tensor:
    """X − B(BᵀX), in float64, in X's dtype."""
    if basis is None:
        return columns
    wide, basis = columns.double(), basis.double()
    return (wide - basis @ (basis.mT @ wide)).to(columns.dtype)


def _shapes(deltas: Iterable[Delta]) -> str:
    return ", ".join(sorted({f"{out} x {into}" for out, into in (delta.shape for delta in deltas)}))
