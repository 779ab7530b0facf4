"""Large symmetric matrices on the CPU, where BLAS and LAPACK have quicker ways than torch offers.

A symmetric G is Q T Qᵀ with T tridiagonal (Golub and Van Loan, Matrix Computations, §8.3). That reduction is the
part of `eigh` that can't be avoided; all eigenvalues of T and a few of its eigenvectors cost little beside it,
while `eigh` goes on to find all vectors and to turn them back by Q.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import blas, eigvalsh_tridiagonal, lapack
from torch import Tensor

__all__ = ["Reduction", "symmetric_product"]

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


def symmetric_product(a_oi: Tensor) -> Tensor:
    """AᵀA, (i, i), in A's dtype, float32 or float64, for A (o, i) on the CPU: half the work of a product."""
    # BLAS goes by columns: a matrix that lies by rows is its transpose there, and neither is copied.
    by_columns = a_oi.mT.is_contiguous()
    syrk = blas.ssyrk if a_oi.dtype == torch.float32 else blas.dsyrk
    upper = torch.from_numpy(syrk(1.0, a_oi.numpy() if by_columns else a_oi.mT.numpy(), trans=by_columns, lower=1).T)
    return upper.add_(upper.triu(1).mT)


class Reduction:
    """G = Q T Qᵀ for a symmetric G (i, i) on the CPU, float32 or float64, at least 2 × 2.

    Q is kept as its reflectors in G's dtype. T and all that is done with it is float64; its eigenvalues are G's but for
    some units of rounding of G's dtype, relative to the largest of them.

    Args:
        gram: G, which is written over.

    Raises:
        LinAlgError: G holds NaN or infinity.
    """

    def __init__(self, gram: Tensor) -> None:
        if gram.dtype == torch.float64:
            ask, reduce, self._turn = lapack.dsytrd_lwork, lapack.dsytrd, lapack.dormqr
        else:
            ask, reduce, self._turn = lapack.ssytrd_lwork, lapack.ssytrd, lapack.sormqr
        work = int(ask(len(gram), lower=1)[0])
        reflectors, diagonal, beside, self._scales, _ = reduce(gram.mT.numpy(), lower=1, lwork=work, overwrite_a=1)
        self._diagonal, self._beside = diagonal.astype(np.float64), beside.astype(np.float64)
        if not (np.isfinite(self._diagonal).all() and np.isfinite(self._beside).all()):
            raise LinAlgError("the tridiagonal matrix holds NaN or infinity")
        self._reflectors = np.asfortranarray(reflectors[1:, :-1])

    def values(self) -> Tensor:
        """All eigenvalues, (i,), float64, rising."""
        return torch.from_numpy(eigvalsh_tridiagonal(self._diagonal, self._beside))

    def vectors_of_t(self, places: list[int]) -> Tensor:
        """T's unit eigenvectors, (i, r), float64, to the eigenvalues at these places of the rising order.

        By bisection and inverse iteration. Those to equal eigenvalues may come out parallel.

        Raises:
            LinAlgError: inverse iteration did not converge.
        """
        found = []
        for place in places:
            number = place + 1
            _, values, blocks, ends, _ = lapack.dstebz(
                self._diagonal, self._beside, 2, 0.0, 0.0, number, number, 0.0, "B"
            )
            found.append((blocks[0], values[0]))
        # Where T falls apart in blocks, the vectors are to be asked for by block.
        order = sorted(range(len(places)), key=lambda index: found[index])
        blocks[: len(places)] = [found[index][0] for index in order]
        vectors, failed = lapack.dstein(
            self._diagonal, self._beside, np.array([found[index][1] for index in order]), blocks, ends
        )
        if failed:
            raise LinAlgError("inverse iteration with the tridiagonal matrix did not converge")
        result = torch.empty(len(self._diagonal), len(places), dtype=torch.float64, device="cpu")
        result[:, order] = torch.from_numpy(vectors)
        return result

    def turned(self, columns: Tensor, back: bool = False) -> Tensor:
        """Q X for X (i, r), or Qᵀ X, in float64; rounded as Q is."""
        rest = np.asfortranarray(columns[1:].numpy(), dtype=self._reflectors.dtype)
        trans, columns = "T" if back else "N", columns.clone()
        *_, work, _ = self._turn("L", trans, self._reflectors, self._scales, rest, -1)
        turned, *_ = self._turn("L", trans, self._reflectors, self._scales, rest, int(work[0]))
        columns[1:] = torch.from_numpy(turned)
        return columns

    def solved(self, shifts: Tensor, columns: Tensor) -> Tensor:
        """(T − sⱼ)⁻¹ xⱼ for each column of X (i, r) and its shift (r,), float64; 0 where T − s is singular."""
        result = torch.empty_like(columns)
        for index, shift in enumerate(shifts.tolist()):
            shifted = self._diagonal - shift
            *_, solution, failed = lapack.dgtsv(
                self._beside, shifted, self._beside, columns[:, index : index + 1].numpy()
            )
            result[:, index] = torch.from_numpy(solution[:, 0]) if not failed else 0.0
        return result
