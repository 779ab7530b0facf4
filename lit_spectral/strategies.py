"""How processes share a model: `fsdp2`, and which of Lightning's strategies can't be used."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks.weight_averaging import WeightAveraging
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    StrategyRegistry,
)
from torch import nn

from lit_spectral.adapters.linear import is_quantised
from lit_spectral.errors import InputError
from lit_spectral.sharding import is_sharded, shard

__all__ = [
    "FSDP2Strategy",
    "check_adapted",
    "check_strategy",
    "pass_by_shards",
    "refuse_by_name",
    "shard_for",
    "shards",
]


class FSDP2Strategy(DDPStrategy):
    """DDP over what is trained, with the frozen rest of the model in shards: `--trainer.strategy fsdp2`.

    Adapters and new heads are small: they, their gradients and their optimizer's state are whole on every process, as
    under DDP, and so is a checkpoint. The task shards the backbone when it has loaded it. Settings are DDP's.
    """

    strategy_name = "fsdp2"


StrategyRegistry.register(
    FSDP2Strategy.strategy_name, FSDP2Strategy, description="DDP over adapters, the frozen backbone sharded by FSDP2"
)


def shards(trainer: Any) -> bool:
    """Whether a trainer, if there is one, has its strategy shard backbones."""
    return trainer is not None and isinstance(trainer.strategy, FSDP2Strategy)


def pass_by_shards(module: nn.Module) -> None:
    """Have DDP, and what makes modules alike on all processes without it, leave sharded parameters alone."""
    names = [name for name, parameter in module.named_parameters() if is_sharded(parameter)]
    module._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]


def refuse_by_name(name: str) -> None:
    """InputError for a strategy, by the name or class that `trainer.strategy` gives, that can't train adapters."""
    kind = name.rpartition(".")[2]
    if kind == "ModelParallelStrategy":
        raise InputError(
            "trainer.strategy: ModelParallelStrategy would train a model of its own in every process, and tensor "
            "parallelism is not to be had; give fsdp2, which shards the backbone"
        )
    if kind == "FSDPStrategy" or (kind.startswith("fsdp") and kind != FSDP2Strategy.strategy_name):
        raise InputError(
            "trainer.strategy: FSDP1 makes one flat parameter of a block, in which there are no factors left to bound "
            "or to save; give fsdp2"
        )
    if kind == "DeepSpeedStrategy" or kind.startswith("deepspeed"):
        raise InputError(
            "trainer.strategy: DeepSpeed keeps what is trained in an optimizer of its own, where no adapter is held in "
            "its set; give fsdp2, or ddp"
        )


def check_strategy(trainer: pl.Trainer) -> None:
    """InputError where the trainer's strategy can't train adapters, or can't with what else it is given."""
    for kind in (ModelParallelStrategy, FSDPStrategy, DeepSpeedStrategy):
        if isinstance(trainer.strategy, kind):
            refuse_by_name(kind.__name__)
    if not shards(trainer):
        return
    if str(trainer.precision) not in {"32-true", "bf16-mixed", "16-mixed"}:
        raise InputError(
            f"trainer.precision: {trainer.precision} would cast a backbone that is sharded already; give bf16-mixed, "
            "and --model.dtype bfloat16"
        )
    averages = [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
    if averages:
        raise InputError(
            f"trainer.callbacks: {type(averages[0]).__name__} copies the whole model, which fsdp2 has in shards; leave "
            "it out, or give --trainer.strategy ddp"
        )


def shard_for(trainer: Any, model: nn.Module, encoder: nn.Module, kept: set[nn.Parameter]) -> None:
    """Shard a model, but for what is kept whole, where the trainer's strategy does that and it isn't done."""
    if not shards(trainer):
        return
    if any(is_quantised(module) for module in model.modules()):
        raise InputError(
            "trainer.strategy: fsdp2 can't shard the codes of a quantised backbone, which go with scales; give ddp, or "
            "leave model.quantization out"
        )
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        shard(model, encoder, kept, trainer.strategy.root_device)


def check_adapted(model: nn.Module, adapted: nn.Module, method: str) -> None:
    """InputError where a method trains or reads what is sharded, outside the model's own forward pass.

    Args:
        model: as it was loaded and sharded, or whole.
        adapted: what the method made of it, the same or a wrapper.
        method: its name.
    """
    if adapted is not model and any(is_sharded(parameter) for parameter in model.parameters()):
        raise InputError(
            f"trainer.strategy: fsdp2 has the embeddings in shards, beside which {method} puts a learned prompt; "
            "give ddp"
        )
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad and is_sharded(p)]
    if trained:
        raise InputError(
            f"trainer.strategy: fsdp2 shards what is frozen, and {method} trains weights of the backbone "
            f"({trained[0]}, …); give ddp"
        )
