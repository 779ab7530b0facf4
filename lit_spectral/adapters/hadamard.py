"""ΔW = R₀ ⊙ (L R): a change of high rank from thin factors (HiRA), with one dense product a forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lit_spectral.adapters.base import Adapter, Factors
from lit_spectral.adapters.linear import compute_dtype, is_quantised, is_transposed, weight_matrix
from lit_spectral.adapters.low_rank import add_low_rank
from lit_spectral.adapters.start import product_triplets, put_product
from lit_spectral.sharding import whole

if TYPE_CHECKING:
    from typing_extensions import Self

    from lit_spectral.updates import Delta, Pair

__all__ = ["HadamardAdapter", "HadamardLowRankAdapter"]

# R₀ (out, in), and W₀ where it is added.
Matrices = Callable[[], tuple[Tensor, Tensor | None]]

# Entries of a row block: bounds what a product makes beside its result, 64 MiB in float32.
BLOCK = 2**24


class _HadamardProduct(torch.autograd.Function):
    """y = x (W₀ + R₀ ⊙ (L R))ᵀ, or without W₀, in x's dtype; x (n, in), y (n, out).

    The changed weight is made a block of rows at a time, used and dropped, and made again in
    backward: only x and the factors are saved. W₀ and R₀ are asked for each time, since those of
    quantised weights are made anew too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: Tensor, right: Tensor, matrices: Matrices) -> Tensor:
        ctx.save_for_backward(x, left, right)
        ctx.matrices = matrices
        reference, weight = matrices()
        y = x.new_empty(len(x), len(left))
        for rows in _blocks(left, right):
            torch.mm(x, _changed(left, right, reference, weight, rows, x.dtype).mT, out=y[:, rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, left, right = ctx.saved_tensors
        reference, weight = ctx.matrices()
        dy = gradients[0].to(x.dtype)
        dx = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        d_left, d_right = torch.empty_like(left), torch.zeros_like(right)
        for rows in _blocks(left, right):
            if dx is not None:
                dx.addmm_(dy[:, rows], _changed(left, right, reference, weight, rows, x.dtype))
            d_product = (dy[:, rows].mT @ x).mul_(reference[rows])
            d_left[rows] = (d_product @ right.to(x.dtype).mT).to(left.dtype)
            d_right += left[rows].to(x.dtype).mT @ d_product
        return dx, d_left, d_right, None


def _blocks(left: Tensor, right: Tensor) -> list[slice]:
    height = max(1, BLOCK // right.shape[1])
    return [slice(start, start + height) for start in range(0, len(left), height)]


def _changed(
    left: Tensor, right: Tensor, reference: Tensor, weight: Tensor | None, rows: slice, dtype: torch.dtype
) -> Tensor:
    """A block of rows of W₀ + R₀ ⊙ (L R), rounded to `dtype` once, at the end."""
    product = left[rows].to(dtype) @ right.to(dtype)
    if weight is None:
        return (reference[rows] * product).to(dtype)
    return torch.addcmul(weight[rows], reference[rows], product).to(dtype)


class HadamardAdapter(Adapter):
    """ΔW = R₀ ⊙ (L R) with L (out, r) = 0 and R (r, in) Kaiming uniform (HiRA eq. 6).

    In float32 without dropout W₀ + ΔW is one weight and one dense product. Dropout acts on ΔW's input
    alone, which then is a second product; so it is where the weight is quantised, which bitsandbytes multiplies
    by, and where the product runs in bfloat16 or float16:
    many backbones' weights lie on bfloat16's own grid, and their sum with a change of less than 2⁻⁹ of
    an entry, rounded, is that entry again.

    Args:
        base_layer: the linear map to adapt.
        rank: r of L R.
        dropout: probability, on the adapter's input.
        reference: R₀ (out, in), fixed; None for W₀ itself. Not saved: the method makes it again.
    """

    reference: Tensor | None

    def __init__(self, base_layer: nn.Module, rank: int, dropout: float = 0.0, reference: Tensor | None = None) -> None:
        super().__init__(base_layer)
        self.dropout = dropout
        device = self.weight.device
        self.left = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
        self.right = nn.Parameter(torch.empty(rank, self.in_features, device=device))
        nn.init.kaiming_uniform_(self.right, a=math.sqrt(5))
        self.register_buffer("reference", None if reference is None else reference.to(device), persistent=False)
        self._divisor: _Divisor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        if self.folded:
            return self.base_layer(x)  # type: ignore[no-any-return]
        dtype = compute_dtype(x)
        two = (self.training and self.dropout) or dtype in {torch.bfloat16, torch.float16}
        if two or is_quantised(self.base_layer):
            base: Tensor = self.base_layer(x)
            return base + self._product(F.dropout(x, self.dropout, self.training).to(base.dtype), False)
        out = self._product(x.to(dtype), True)
        return out if self.bias is None else out + self.bias.to(dtype)

    def _product(self, x: Tensor, added: bool) -> Tensor:
        """X (…, in) times ΔWᵀ, or (W₀ + ΔW)ᵀ."""

        def matrices() -> tuple[Tensor, Tensor | None]:
            return self._reference, weight_matrix(self.base_layer) if added else None

        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, self.in_features)
            out: Tensor = _HadamardProduct.apply(rows, self.left, self.right, matrices)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], self.out_features)

    def start_at(self, delta: Delta) -> None:
        """As of any adapter, where ΔW multiplies W₀ as this one's does."""
        others = delta.factors is not None or delta.matrix is not None
        if self.reference is not None or delta.hadamard is None or others:
            raise ValueError(
                "HiRA goes on with changes W₀ ⊙ (L R) alone, of HiRA with reference: weight; give HiRALoRA for those "
                "with factors beside, LoRA for those of low rank, or FullFineTuning"
            )
        self._put(delta.hadamard)

    def _put(self, hadamard: Pair) -> None:
        put_product(self.left, self.right, product_triplets(hadamard.left, hadamard.right.mT), hadamard)

    @property
    def _reference(self) -> Tensor:
        return self.reference if self.reference is not None else whole(self._original)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """ΔW, dense, float32, (out, in)."""
        return self._reference.float() * (self.left.float() @ self.right.float())

    @torch.no_grad()
    def times(self, vector: Tensor) -> Tensor:
        """ΔW v by a product of R₀ with r columns: (R₀ (R ⊙ v)ᵀ ⊙ L) summed over the rank."""
        weighted = (self.right.float() * vector).mT
        reference = self._reference
        wide = torch.cat([reference[rows].float() @ weighted for rows in _blocks(self.left, self.right)])
        return (wide * self.left.float()).sum(1)

    @torch.no_grad()
    def transposed_times(self, vector: Tensor) -> Tensor:
        """ΔWᵀ u in the same way."""
        weighted = self.left.float() * vector[:, None]
        wide = torch.zeros_like(self.right, dtype=torch.float32).mT
        reference = self._reference
        for rows in _blocks(self.left, self.right):
            wide = wide + reference[rows].float().mT @ weighted[rows]
        return (wide * self.right.float().mT).sum(1)

    def _keep(self, weight: Tensor) -> None:
        """Keep, in place of W₀, by how many units in the last place division gives it back wrongly, one byte each.

        Where an entry of 1 + L R is so near 0 that a byte does not hold that, W₀ itself is kept.
        """
        self._divisor = None
        if self.reference is None and weight.dtype in _INTEGER:
            factors = self.left.detach().clone(), self.right.detach().clone()
            divisor = _Divisor(*factors, torch.empty_like(weight, dtype=torch.int8))
            for rows, divided in self._divided(divisor):
                wrong = _integers(weight[rows]) - _integers(divided)
                if ((wrong > 127) | (wrong < -127)).any():  # abs would overflow at -0
                    break
                divisor.ulps[rows] = wrong.to(torch.int8)
            else:
                self._divisor = divisor
                return
        super()._keep(weight)

    @torch.no_grad()
    def _kept(self) -> Tensor:
        """W₀ = W′ / (1 + L R) (HiRA §4.4), mended in the last place; or the copy that was kept."""
        if self._divisor is None:
            return super()._kept()
        weight = torch.empty_like(self.weight)
        for rows, divided in self._divided(self._divisor):
            weight[rows] = (_integers(divided) + self._divisor.ulps[rows]).view(weight.dtype)
        return weight

    @torch.no_grad()
    def _divided(self, divisor: _Divisor) -> Iterator[tuple[slice, Tensor]]:
        """The folded weight over 1 + L R, as it lies and in its dtype, in blocks of rows."""
        weight = self.weight.detach()
        left, right = divisor.left.float(), divisor.right.float()
        if is_transposed(self.base_layer):
            left, right = right.mT, left.mT
        with torch.autocast(weight.device.type, enabled=False):
            for rows in _blocks(left, right):
                yield rows, (weight[rows].float() / (1 + left[rows] @ right)).to(weight.dtype)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """Division is exact only where and as it was folded: on the way elsewhere, W₀ is kept after all."""
        if self.folded and self._divisor is not None:
            super()._keep(self._kept())
            self._divisor = None
        return super()._apply(*args, **kwargs)


class _Divisor(NamedTuple):
    """What the folded weight is divided by, L and R as they were, and how wrong that is in the last place."""

    left: Tensor
    right: Tensor
    ulps: Tensor


# Floats of one sign are ordered as the integers of their bits are.
_INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def _integers(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_INTEGER[tensor.dtype])


class HadamardLowRankAdapter(HadamardAdapter):
    """ΔW = W₀ ⊙ (L R) + s·L₂ R₂, both left factors 0 at the start (HiRA §6.6).

    Args:
        base_layer: the linear map to adapt.
        rank: of L R.
        added_rank: of L₂ R₂.
        scale: s.
        dropout: probability, on the input of either part.
    """

    def __init__(self, base_layer: nn.Module, rank: int, added_rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base_layer, rank, dropout)
        self.scale = scale
        self.added_left = nn.Parameter(self.left.new_zeros(self.out_features, added_rank))
        self.added_right = nn.Parameter(self.right.new_empty(added_rank, self.in_features))
        nn.init.kaiming_uniform_(self.added_right, a=math.sqrt(5))

    def start_at(self, delta: Delta) -> None:
        """As of any adapter, where ΔW is of this form; a part that it lacks starts as ever."""
        if delta.matrix is not None:
            raise ValueError(
                "HiRALoRA goes on with changes W₀ ⊙ (L R) + L₂ R₂ alone; give LoRA for low ranks, or FullFineTuning"
            )
        if delta.hadamard is not None:
            self._put(delta.hadamard)
        if (pair := delta.factors) is not None:
            given = product_triplets(pair.left, pair.right.mT)
            put_product(self.added_left, self.added_right, given, pair, self.scale, "lora_rank")

    @property
    def _added(self) -> Factors:
        return Factors(self.added_left, self.scale, self.added_right)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        out = super().forward(x)
        return out if self.folded else add_low_rank(out, F.dropout(x, self.dropout, self.training), self._added)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """ΔW, dense, float32, (out, in)."""
        return super().delta_weight() + self.added_left.float() @ self.added_right.float() * self.scale

    @torch.no_grad()
    def times(self, vector: Tensor) -> Tensor:
        """ΔW v."""
        return super().times(vector) + self.added_left.float() @ (self.added_right.float() @ vector) * self.scale

    @torch.no_grad()
    def transposed_times(self, vector: Tensor) -> Tensor:
        """ΔWᵀ u."""
        return super().transposed_times(vector) + self.scale * (
            self.added_right.float().mT @ (self.added_left.float().mT @ vector)
        )

    def _keep(self, weight: Tensor) -> None:
        """W₀ itself: the sum can't be divided out."""
        Adapter._keep(self, weight)
