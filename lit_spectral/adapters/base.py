"""What every adapter is: a frozen linear map plus a change ΔW, and a declaration of its constraints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_spectral.adapters.linear import is_quantised, is_transposed, linear_shape, weight_matrix
from lit_spectral.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

    from lit_spectral.updates import Delta

__all__ = ["Adapter", "Bounded", "Budget", "Change", "Confined", "Factors", "Wrapper", "refuse_quantised"]


class Factors(NamedTuple):
    """ΔW = left @ diag(scale) @ right, with left (out, r), scale (r,) or a number, right (r, in).

    Where only the first `columns` of left, or the first `rows` of right, depend on what is trained,
    their number is given, and backward passes by the others.
    """

    left: Tensor
    scale: Tensor | float
    right: Tensor
    columns: int | None = None
    rows: int | None = None


class Bounded(NamedTuple):
    """A tensor whose entries must stay in [lower, upper]."""

    tensor: Tensor
    upper: float
    lower: float = 0.0


class Confined(NamedTuple):
    """Columns (m, r), a view of a parameter, that must stay orthogonal to a basis (m, k) of orthonormal columns."""

    columns: Tensor
    basis: Tensor


class Budget(NamedTuple):
    """A penalty factor · Σᵢ weightsᵢ · tensorᵢ²."""

    tensor: Tensor
    weights: Tensor
    factor: float


class Change:
    """A change ΔW (out, in) of a linear map, and what must hold of it.

    A change declares, callbacks act on the declarations of all changes at once:

    Attributes:
        base_layer: the linear map that is changed.
        bounded: tensors that `SigmaClamp` keeps in a range.
        ball_radius: bound on ‖ΔW‖₂ that `SpectralBall` holds; None for none.
        frobenius_radius: bound on ‖ΔW‖_F that `FrobeniusBall` holds; None for none.
        orthonormal: tensors (m, r) whose columns should be orthonormal.
        retracted: whether `FactorRetraction` makes `orthonormal` exactly so, in place of the penalty.
        polar: whether it does so by the nearest such columns, the polar factor, in place of Gram–Schmidt.
        penalty_weight: γ, the factor of the orthogonality penalty.
        decoupled_penalty: whether that penalty acts beside the optimizer instead of in the gradient.
        lr_ratios: learning rate of a parameter of this module over the task's, by its name here.
        folded: whether ΔW lies in the base weight at this moment.
    """

    base_layer: nn.Module
    in_features: int
    out_features: int
    bounded: Sequence[Bounded] = ()
    ball_radius: float | None = None
    frobenius_radius: float | None = None
    orthonormal: Sequence[Tensor] = ()
    retracted: bool = False
    polar: bool = False
    penalty_weight: float = 0.0
    decoupled_penalty: bool = True
    lr_ratios: Mapping[str, float] = {}
    folded: bool = False

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return weight.device

    @property
    def confined(self) -> list[Confined]:
        """What `FactorRetraction` keeps in a subspace."""
        return []

    @property
    def principal_basis(self) -> tuple[Tensor, Tensor] | None:
        """W₀'s leading singular vectors U (out, k) and V (in, k), where the change knows them; None elsewhere."""
        return None

    @property
    def budget(self) -> Budget | None:
        """A quadratic penalty on gains, None for none."""
        return None

    @abstractmethod
    def delta_weight(self) -> Tensor:
        """ΔW, dense, float32, (out, in); for folding and tests, not for the training path."""

    def factors(self) -> Factors | None:
        """ΔW as factors of float32, or None where it is not of low rank."""
        return None

    def orthogonal_parts(self) -> tuple[Factors | None, Tensor | None]:
        """ΔW in two parts that are orthogonal to one another on both sides: factors, and gains on orthonormal pairs.

        ‖ΔW‖₂ is the larger of theirs; a gain's is its absolute value. By default all in factors, no gains.
        """
        return self.factors(), None

    def times(self, vector: Tensor) -> Tensor:
        """ΔW v, from (in,) to (out,), float32."""
        return self.delta_weight() @ vector

    def transposed_times(self, vector: Tensor) -> Tensor:
        """ΔWᵀ u, from (out,) to (in,), float32."""
        return self.delta_weight().mT @ vector

    @abstractmethod
    def fold(self) -> None:
        """Add ΔW to the base weight, so that the model runs at the backbone's speed."""

    @abstractmethod
    def unfold(self) -> None:
        """Undo `fold`."""


class Wrapper(nn.Module):
    """What stands in the place of a linear map, its frozen `base_layer`, and adds something to its output.

    `base_layer` is an `nn.Linear`, a Conv1D or one of bitsandbytes'. What is added need not be linear.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        base_layer.requires_grad_(False)
        self.out_features, self.in_features = linear_shape(base_layer)

    @property
    def weight(self) -> Tensor:
        """The base layer's weight as it lies: some models read their submodules' `weight.dtype`."""
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base_layer.bias  # type: ignore[return-value]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of any module, except that what is trained is not rounded, as by a trainer's bf16-true.

        It has sets to keep to, and steps too small for 8 bits to see.
        """

        def kept(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in {torch.bfloat16, torch.float16} else moved

        for child in self.children() if recurse else ():
            child._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(kept, recurse=False)  # type: ignore[no-untyped-call]
        return self


class Adapter(Wrapper, Change):
    """A linear map W₀ with a trainable change: y = (W₀ + ΔW) x + b.

    `base_layer` is the frozen `nn.Linear` or Conv1D; its weight is written to by `fold` only.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.folded = False
        self._unfolded_weight: Tensor | None = None
        self.register_state_dict_post_hook(_note_folded)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_refuse_folded)  # type: ignore[no-untyped-call]

    def start_at(self, delta: Delta) -> None:
        """Set what is trained such that ΔW is a given change, to float32's rounding.

        Raises:
            ValueError: it can't be, or it violates what the adapter declares; with the remedy.
        """
        raise ValueError("this method can't begin at a given change; give LoRA or its kin, FCLoRA or FullFineTuning")

    @torch.no_grad()
    def fold(self) -> None:
        """Add ΔW to the base weight, in float32; W₀ is kept, for `unfold` to bring back bit by bit."""
        if self.folded:
            return
        refuse_quantised(self.base_layer)
        delta = self.delta_weight().to(self.weight.device)
        before = self.weight.detach().clone()
        self.weight.copy_(before.float() + (delta.mT if is_transposed(self.base_layer) else delta))
        self._keep(before)
        self.folded = True

    @torch.no_grad()
    def unfold(self) -> None:
        """Put W₀ back."""
        if self.folded:
            self.weight.copy_(self._kept())
            self._unfolded_weight = None
            self.folded = False

    @property
    def _original(self) -> Tensor:
        """W₀ (out, in); while ΔW is folded into the weight, what `unfold` would put back."""
        if not self.folded:
            return weight_matrix(self.base_layer)
        kept = self._kept()
        return kept.mT if is_transposed(self.base_layer) else kept

    def _keep(self, weight: Tensor) -> None:
        self._unfolded_weight = weight

    def _kept(self) -> Tensor:
        assert self._unfolded_weight is not None
        return self._unfolded_weight


def refuse_quantised(layer: nn.Module) -> None:
    """InputError where W₀ + ΔW would have to be written as codes, of which there are too few for it."""
    if is_quantised(layer):
        raise InputError(
            "fold: the backbone's weights are quantised, and their codes can't hold W₀ + ΔW; load the checkpoint on "
            "the unquantised backbone (Task.load_from_checkpoint(path, quantization=None)) and fold that"
        )


def _note_folded(adapter: Adapter, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Say in a state dict's metadata that the base weight in it has ΔW in it already."""
    if adapter.folded:
        metadata["folded"] = True


def _refuse_folded(adapter: Adapter, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *args: Any) -> None:
    """InputError where the weights that are loaded would not go with the factors, or the factors with the weights."""
    if adapter.folded or metadata.get("folded"):
        whose = "this model" if adapter.folded else "the model that these weights are of"
        raise InputError(
            f"{prefix.rstrip('.') or 'the adapter'}: {whose} is folded; unfold it before it is saved or loaded"
        )
