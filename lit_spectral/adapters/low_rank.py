"""The forward pass that all low-rank methods share, and ΔW = s·L R (LoRA and its kin)."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lit_spectral.adapters.base import Adapter, Confined, Factors
from lit_spectral.adapters.linear import compute_dtype, is_plain_and_frozen, is_transposed
from lit_spectral.adapters.start import check_ball, check_outside, put_product, triplets_of
from lit_spectral.spectra import SingularTriplets
from lit_spectral.spectra.linalg import joined_basis

if TYPE_CHECKING:
    from lit_spectral.updates import Delta, Pair

__all__ = ["FactoredAdapter", "LowRankAdapter", "add_low_rank"]


def add_low_rank(base: Tensor, x: Tensor, factors: Factors) -> Tensor:
    """Base + (x Rᵀ) diag(s) Lᵀ by plain autograd, for base (…, out) and x (…, in), in base's dtype.

    For a base output that something else has computed; `_LowRankLinear` needs the frozen weight itself.
    """
    dtype = base.dtype
    scale = factors.scale.to(dtype) if isinstance(factors.scale, Tensor) else factors.scale
    narrow = F.linear(x.to(dtype), factors.right.to(dtype)) * scale
    rank = narrow.shape[-1]
    wide = torch.addmm(base.reshape(-1, base.shape[-1]), narrow.reshape(-1, rank), factors.left.to(dtype).mT)
    return wide.view(base.shape)


class _LowRankLinear(torch.autograd.Function):
    """y = x Wᵀ + b + ((x ⊙ keep) Rᵀ) diag(s) Lᵀ for a frozen W (out, in) and b; x (n, in), y (n, out).

    Everything runs in x's dtype: float32 factors are cast down, and get float32 gradients. Both
    passes accumulate into the result of their dense product, in place. Backward keeps x, what is r
    wide and the factors, and W by reference. What is r wide lies as (r, n), and L is used as Lᵀ:
    with so few rows CPUs multiply several times faster that way round (docs/performance.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        keep: Tensor | None,
        left: Tensor,
        scale: Tensor | float,
        right: Tensor,
        columns: int | None,
        rows: int | None,
    ) -> Tensor:
        matrix = weight.to(x.dtype).mT
        y = x @ matrix if bias is None else torch.addmm(bias.to(x.dtype), x, matrix)
        left_ro, right_ri = _laid_out(left.mT, x.dtype), _laid_out(right, x.dtype)
        scale_r1 = scale.to(x.dtype).unsqueeze(1) if isinstance(scale, Tensor) else scale
        narrow = right_ri @ (x if keep is None else x * keep).mT
        scaled = narrow * scale_r1
        y.addmm_(scaled.mT, left_ro)
        gains = scale_r1 if isinstance(scale, Tensor) else None
        ctx.save_for_backward(x, weight, keep, left_ro, gains, right_ri, narrow if gains is not None else None, scaled)
        ctx.scale, ctx.trained, ctx.dtypes = scale, (columns, rows), (left.dtype, right.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, keep, left_ro, gains, right_ri, narrow, scaled = ctx.saved_tensors
        dy, (columns, rows) = gradients[0], ctx.trained
        scale_r1 = ctx.scale if gains is None else gains
        d_scaled = left_ro @ dy.mT
        d_narrow = d_scaled * scale_r1
        d_left = _first_rows(columns, scaled, dy)
        d_right = _first_rows(rows, d_narrow, x if keep is None else x * keep)
        d_scale = (
            None if gains is None else (d_scaled * narrow).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
        )
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight.to(x.dtype)
            dx = dx.addmm_(d_narrow.mT, right_ri) if keep is None else dx.add_((d_narrow.mT @ right_ri).mul_(keep))
        d_left = d_left.mT.to(ctx.dtypes[0], memory_format=torch.contiguous_format)
        return dx, None, None, None, d_left, d_scale, d_right.to(ctx.dtypes[1]), None, None


def _laid_out(rows: Tensor, dtype: torch.dtype) -> Tensor:
    # One pass where it casts; where it need not, `to` looks at no strides.
    return rows.to(dtype, memory_format=torch.contiguous_format).contiguous()


def _first_rows(count: int | None, left: Tensor, right: Tensor) -> Tensor:
    """Left @ right, of which all but the first `count` rows are 0."""
    if count is None:
        return left @ right
    return F.pad(left[:count] @ right, (0, 0, 0, len(left) - count))


class FactoredAdapter(Adapter):
    """An adapter whose ΔW is a product of thin factors; a subclass only says which."""

    u_basis: Tensor
    v_basis: Tensor
    left_basis: Tensor | None
    right_basis: Tensor | None

    def __init__(self, base_layer: nn.Module, dropout: float) -> None:
        super().__init__(base_layer)
        self.dropout = dropout
        self._is_confined = False
        # What else to keep out of: of other adapters, and of inputs. ΔW isn't made of them, and they aren't saved.
        self.register_buffer("left_basis", None, persistent=False)
        self.register_buffer("right_basis", None, persistent=False)

    @abstractmethod
    def factors(self) -> Factors:
        """ΔW as (left, scale, right)."""

    def free_factors(self) -> Factors | None:
        """Factors of what `SpectralBall` may contract: `left` is a parameter and takes any value.

        None where ΔW is not free to take the contracted value, and `SpectralBall` asks for a `retreat`.
        """
        return self.factors()

    def columns(self) -> tuple[Tensor, Tensor]:
        """What of ΔW can be confined: (out, r) and (in, r), both parameters."""
        left, _, right, *_ = self.factors()
        return left, right.mT

    def confine(self, u: Tensor, v: Tensor, saved: bool = True) -> None:
        """Keep the columns orthogonal to W₀'s leading U (out, k) and V (in, k) (HiP-LoRA App. A.2).

        `saved` keeps U and V with the adapter, as ΔW needs where it is made of them: an SVD's signs do
        not reproduce across machines; its subspaces do.
        """
        device = self.weight.device
        self.register_buffer("u_basis", u.to(device, torch.float32).contiguous(), persistent=saved)
        self.register_buffer("v_basis", v.to(device, torch.float32).contiguous(), persistent=saved)
        self._is_confined = True

    def ignore_inputs(self, directions: Tensor) -> None:
        """Keep ΔW at 0 on these directions of its inputs, (in, k), orthonormal, beside what it is confined to.

        Raises ValueError where ΔW is no product with a right factor of its own.
        """
        given = directions.to(self.weight.device)
        self.right_basis = joined_basis(self.right_basis, given, self.v_basis if self._is_confined else None)

    def avoid(self, u: Tensor, v: Tensor) -> None:
        """Keep ΔW orthogonal to U (out, k) and V (in, k), unit columns, on its sides, beside what it is confined to.

        Raises:
            ValueError: ΔW is no product of factors of its own, or there is no room beside its rank.
        """
        principal = (self.u_basis, self.v_basis) if self._is_confined else (None, None)
        own, given = (self.left_basis, self.right_basis), (u.to(self.weight.device), v.to(self.weight.device))
        bases = [joined_basis(*each) for each in zip(own, given, principal, strict=True)]
        for columns, *held in zip(self.columns(), bases, principal, strict=True):
            taken = sum(basis.shape[1] for basis in held if basis is not None)
            size, rank = columns.shape
            if rank + taken > size:
                raise ValueError(
                    f"rank {rank} beside {taken} directions to keep out of is above the {size} that there are; give a "
                    "smaller rank, or truncate what `after` names: lit-spectral export --rank"
                )
        self.left_basis, self.right_basis = bases

    @property
    def principal_basis(self) -> tuple[Tensor, Tensor] | None:
        """What `confine` was given."""
        return (self.u_basis, self.v_basis) if "u_basis" in self._buffers else None

    @property
    def confined(self) -> list[Confined]:
        """The columns against U and V, where `confine` was called, and against what else they keep out of."""
        sides = self.kept_out_of()
        if not any(sides):
            return []
        pairs = zip(self.columns(), sides, strict=True)
        return [Confined(columns.detach(), basis) for columns, bases in pairs for basis in bases]

    def kept_out_of(self) -> tuple[list[Tensor], list[Tensor]]:
        """Orthonormal bases of what L's columns, and of what R's rows, are orthogonal to."""
        principal = (self.u_basis, self.v_basis) if self._is_confined else (None, None)
        sides = zip(principal, (self.left_basis, self.right_basis), strict=True)
        left, right = ([basis for basis in side if basis is not None] for side in sides)
        return left, right

    def start_at(self, delta: Delta) -> None:
        """As of any adapter, where ΔW has no higher rank, is in the ball, and keeps out of what this one does."""
        given = triplets_of(delta, self.base_layer)
        check_ball(self, given)
        check_outside(self, given, float(given.sigma.norm()))
        self._begin_at(given, delta.factors if delta.is_thin else None)

    @abstractmethod
    def _begin_at(self, given: SingularTriplets, factors: Pair | None) -> None:
        """Set what is trained; `factors` are those that the change has already, if it is their product.

        ValueError if it has a higher rank.
        """

    def retreat(self, fraction: float) -> None:
        """Move ΔW towards 0, along the line from where it started, to `fraction` in [0, 1] of the way; here L alone."""
        self.factors().left.detach().mul_(fraction)

    def hold_in_ball(self, radius: float) -> None:
        """Declare ‖ΔW‖₂ ≤ radius."""
        self.ball_radius = radius

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out); dropout acts on the adapter's input only, as in LoRA."""
        if self.folded:
            return self.base_layer(x)  # type: ignore[no-any-return]
        left, scale, right, columns, rows = self.factors()
        if not is_plain_and_frozen(self.base_layer):
            return add_low_rank(self.base_layer(x), F.dropout(x, self.dropout, self.training), self.factors())
        inputs = x.to(compute_dtype(x)).reshape(-1, self.in_features)
        keep = None
        if self.training and self.dropout:
            # Saved as a mask beside x, which other maps share, in place of a copy of x.
            keep = torch.empty_like(inputs, dtype=torch.bool).bernoulli_(1 - self.dropout)
            scale = scale / (1 - self.dropout)
        weight = self.weight.mT if is_transposed(self.base_layer) else self.weight
        out: Tensor = _LowRankLinear.apply(inputs, weight, self.bias, keep, left, scale, right, columns, rows)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """ΔW, dense, float32, (out, in)."""
        left, scale, right, *_ = self.factors()
        return (left.float() * scale) @ right.float()


class LowRankAdapter(FactoredAdapter):
    """ΔW = scale · L R with L (out, r) = 0 and R (r, in) Kaiming uniform (Hu et al., 2021)."""

    def __init__(self, base_layer: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base_layer, dropout)
        self.scale = scale
        device = self.weight.device
        self.left = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
        self.right = nn.Parameter(torch.empty(rank, self.in_features, device=device))
        nn.init.kaiming_uniform_(self.right, a=math.sqrt(5))

    def factors(self) -> Factors:
        """(L, scale, R)."""
        return Factors(self.left, self.scale, self.right)

    def columns(self) -> tuple[Tensor, Tensor]:
        """(L, Rᵀ)."""
        return self.left, self.right.mT

    def _begin_at(self, given: SingularTriplets, factors: Pair | None) -> None:
        put_product(self.left, self.right, given, factors, self.scale)
