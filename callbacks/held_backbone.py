"""The frozen backbone in bfloat16 while bf16-mixed trains its adapters."""

from __future__ import annotations

from collections import Counter

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lit_spectral.adapters.foreign import is_peft_layer
from lit_spectral.adapters.linear import is_linear, is_quantised

__all__ = ["HeldBackbone"]


class HeldBackbone(Callback):
    """Holds frozen linear maps in bfloat16 while training in bf16-mixed, where autocast would cast them at each use.

    The numbers are those of autocast, to the bit, without its cast in every forward and backward
    pass, but for HiRA's, whose change is a product with the weight itself; embeddings, norms and
    whatever is trained stay in float32. What rounding takes off is kept on the CPU, 2 bytes a weight:
    after training the float32 weights are back, every bit of them, before other callbacks' turn, so
    that folding and saving never see rounded ones. On a GPU the weights take half the memory meanwhile.

    Maps wrapped by peft's layers, and weights shared with another module, are left alone. A callback
    that calls the model while it trains does so in `trainer.precision_plugin.forward_context()`, as
    training does; it can't fold the model then.

    Args:
        enabled: False to leave the backbone in float32.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._held: list[tuple[nn.Parameter, Tensor, tuple[Tensor, ...]]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Go before all other callbacks, which may want the float32 weights when training ends or fails."""
        trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Round what is to be held; not before, since checkpoints are restored and models checked in float32."""
        if self.enabled and str(trainer.precision) == "bf16-mixed":
            self.hold(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the float32 weights back."""
        self.release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the float32 weights back."""
        self.release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the float32 weights back."""
        self.release()

    @torch.no_grad()
    def hold(self, model: nn.Module) -> None:
        """Round frozen float32 weights and biases of linear maps to bfloat16, and remember the difference."""
        owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        wrapped = {id(inner) for outer in model.modules() if is_peft_layer(outer) for inner in outer.modules()}
        for module in model.modules():
            if is_linear(module) and not is_quantised(module) and id(module) not in wrapped:
                for parameter in module.parameters(recurse=False):
                    # DTensors, sharded by FSDP2, are of another type.
                    plain = type(parameter) is nn.Parameter and parameter.dtype == torch.float32
                    if plain and not parameter.requires_grad and owners[id(parameter)] == 1:
                        self._round(parameter)

    def _round(self, parameter: nn.Parameter) -> None:
        rounded = parameter.to(torch.bfloat16)
        # Neighbours of one sign are as far apart as the integers of their bits: at most 2¹⁵ either way.
        off = parameter.view(torch.int32) - rounded.float().view(torch.int32)
        ties = (off == 2**15).nonzero(as_tuple=True)  # which 16 bits hold as -2¹⁵
        self._held.append((parameter, off.to("cpu", torch.int16), ties))
        parameter.data = rounded
        parameter.held = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def release(self) -> None:
        """Undo `hold`, bit by bit."""
        for parameter, off, ties in self._held:
            bits = parameter.float().view(torch.int32) + off.to(parameter.device, torch.int32)
            bits[tuple(index.to(parameter.device) for index in ties)] += 2**16
            parameter.data = bits.view(torch.float32)
            del parameter.held  # type: ignore[attr-defined]
        self._held = []
