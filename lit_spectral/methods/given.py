"""An adapter that was trained before, put on as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lit_spectral.backbones import AS_IT_COMES, Loading
from lit_spectral.errors import InputError
from lit_spectral.methods.base import Method
from lit_spectral.sharding import is_sharded
from lit_spectral.updates.applied import Applied
from lit_spectral.updates.update import Update

__all__ = ["Given"]


@dataclass
class Given(Method):
    """What was trained before, whoever did it, to be measured and used; nothing is trained.

    Args:
        source: a `.ckpt` that `fit` wrote, an adapter of peft's, or a folder of fine-tuned weights.
    """

    trains = False

    source: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.source:
            raise InputError("model.method.source: none is given; give a .ckpt, a folder of peft's, or tuned weights")
        if self.target_modules is not None:
            raise InputError("model.method: Given changes what its source changes and has no target_modules; leave it")
        if self.start_from is not None or self.on_top_of is not None:
            raise InputError(
                "model.method: Given trains nothing, on top of others or from another start; merge them first "
                "(lit-spectral merge), and give the result as its source"
            )
        self._update: Update | None = None
        self._applied: Applied | None = None
        self._digest = ""
        self._missing: Sequence[str] = ()

    def read(self, backbone: str | None = None) -> Update:
        """The update that is on, or will be: the source's, which is read once, or the last that was `put`.

        Raises:
            InputError: as `lit_spectral.updates.sources.read`.
        """
        if self._update is None:
            from lit_spectral.updates import sources  # which stands on methods

            self._update = sources.read(self.source, backbone)
        return self._update

    def put(self, update: Update) -> None:
        """Exchange the update for another one, on the model too if there is one; InputError if that can't take it."""
        if self._applied is not None:
            self._applied.put(update)
        self._update = update

    def prepare(self, backbone: str, digest: str, missing: Sequence[str], loading: Loading = AS_IT_COMES) -> None:
        """Read the source, if that isn't done."""
        self._digest, self._missing = digest, missing
        self.read(backbone)

    def apply(self, model: nn.Module, encoder: nn.Module) -> nn.Module:
        """Freeze the model and put the update on, wherever in it that is.

        Raises:
            InputError: the update is of another backbone, or of another task; the model is as it was then.
        """
        update = self.read()
        if any(is_sharded(parameter) for parameter in model.parameters()):
            raise InputError("trainer.strategy: fsdp2 has weights in shards, which can't be exchanged; give ddp")
        self._check_task(update, model)
        model.requires_grad_(False)
        applied = Applied(model, self._digest)
        applied.put(update)
        self._applied = applied
        return model

    @property
    def class_names(self) -> list[str] | None:
        """Of the classes by number, where whoever trained it has named them."""
        labels = self.read().origin.get("config_labels") or {}
        names = [str(name) for name in (labels.values() if isinstance(labels, dict) else labels)]
        return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names

    def _check_task(self, update: Update, model: nn.Module) -> None:
        known, kind = update.origin.get("architecture"), type(model).__name__
        if known and known != kind:
            raise InputError(f"{self.source}: it is of a {known}, and the task's model is a {kind}; give its own task")
        tensors = model.state_dict()
        for name in self._missing:
            if name not in update.whole:
                raise InputError(
                    f"{self.source}: neither it nor the backbone's files have {name}, which would be random; give the "
                    "task and the backbone that it was trained on"
                )
            theirs, ours = (" x ".join(map(str, tensor.shape)) for tensor in (update.whole[name], tensors[name]))
            if theirs != ours:
                raise InputError(f"{self.source}: its {name} is {theirs}, the task's {ours}; give its own task")
