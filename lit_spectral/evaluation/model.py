"""Adapted decoders as models of lm-evaluation-harness; importing this registers `lit-spectral` with it."""

from __future__ import annotations

import inspect
import logging
import os
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import nn

from lit_spectral import backbones
from lit_spectral.adapters import fold as fold_changes
from lit_spectral.checkpoint import load, steps_of, usable_device
from lit_spectral.errors import InputError
from lit_spectral.evaluation.provenance import provenance
from lit_spectral.tasks import CausalLM, Task

__all__ = ["AdaptedLM", "CheckpointLM", "identity"]

# Of what HFLM takes, all but what says how to load a model, which it would pass over in silence here.
_LOADING = {
    *("pretrained", "tokenizer", "revision", "subfolder", "device", "dtype", "trust_remote_code", "use_fast_tokenizer"),
    *("parallelize", "max_memory_per_gpu", "max_cpu_memory", "offload_folder", "tp_plan"),
    *("peft", "delta", "autogptq", "gptqmodel", "gguf_file", "backend", "kwargs", "self"),
}
_OPTIONS = sorted(inspect.signature(HFLM.__init__).parameters.keys() - _LOADING)


class AdaptedLM(HFLM):  # type: ignore[misc]
    """A decoder as it is, adapters in place, scored by the harness's own code for Hugging Face models.

    Args:
        model: a causal language model of transformers; it is put into eval mode, and stays where it is.
        backbone: a hub id or folder, whose tokenizer is used.
        about: what to write beside the results: where the model comes from.
        options: what `lm_eval --model hf` takes and has no part in loading: `batch_size`, `max_length`,
            `add_bos_token`, `mixed_precision_dtype`, …

    Raises:
        InputError: an option that there isn't.
    """

    def __init__(self, model: nn.Module, backbone: str, about: dict[str, Any], **options: Any) -> None:
        for name in options:
            if name not in _OPTIONS:
                raise InputError(f"model_args: there is no {name} for lit-spectral; there are {', '.join(_OPTIONS)}")
        self._about = about
        tokenizer = backbones.load_tokenizer(backbones.fetch(backbone))
        log = logging.getLogger("lm_eval.models.huggingface")
        level = log.level
        log.setLevel(logging.ERROR)  # it warns of a model that is given and not a name, which is meant
        try:
            super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", **options)
        finally:
            log.setLevel(level)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results: its own description, and under `lit_spectral` ours."""
        return {**super().get_model_info(), "lit_spectral": {**self._about, **provenance()}}


@register_model("lit-spectral")
class CheckpointLM(AdaptedLM):
    """The decoder of a checkpoint or another adapter, or a backbone as it came.

    Args:
        checkpoint: a source, as `lit_spectral.checkpoint.load` takes it; None for the backbone alone.
        backbone: where the backbone lies; None for where it was when the checkpoint was written.
        fold: add the changes to the weights first, which is faster and rounds differently.
        device: `cpu`, `cuda:1`, …; None for the first GPU if there is one.
        options: as in `AdaptedLM`.

    `step` is the optimizer step at which it was written, 0 where nobody says, and for the backbone alone.

    Raises:
        InputError: neither a checkpoint nor a backbone, a checkpoint of another kind of task, a
            device that there isn't; or as in `lit_spectral.checkpoint.load` and `AdaptedLM`.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        backbone: str | None = None,
        fold: bool = False,
        device: str | None = None,
        **options: Any,
    ) -> None:
        if checkpoint is not None:
            task = load(checkpoint, backbone)
            if not isinstance(task, CausalLM):
                raise InputError(
                    f"checkpoint: {checkpoint} is of the task {type(task).__name__}; the harness scores "
                    "decoders alone, of CausalLM; use `lit-spectral validate` for others"
                )
            self.step = steps_of(checkpoint, task)
            about = {"checkpoint": os.path.abspath(checkpoint), "step": self.step, **identity(task), "folded": fold}
        elif backbone is not None:
            task = CausalLM(backbone)
            task.model = task.load_model(backbones.fetch(backbone))[0].eval()
            self.step = 0
            about = {"checkpoint": None, "init": {"backbone": backbone}}
        else:
            raise InputError("give --checkpoint FILE, or --backbone FOLDER for a backbone as it came")
        if fold:
            fold_changes(task.model)
        super().__init__(task.to(usable_device(device)).model, task.backbone, about, **options)


def identity(task: Task) -> dict[str, Any]:
    """What a checkpoint says of a task: its class, method and settings, backbone and the backbone's digest."""
    return task._identity()
