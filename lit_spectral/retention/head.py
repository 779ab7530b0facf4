"""A masked-language head for an encoder that came without one."""

from __future__ import annotations

import hashlib
import logging
from itertools import islice
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from lit_spectral import backbones, tensor_files
from lit_spectral.backbone_digest import parameters_digest
from lit_spectral.errors import InputError
from lit_spectral.paths import cache_folder

if TYPE_CHECKING:
    from lit_spectral.tasks import Task

__all__ = ["fitted_head", "logits_of_states", "masked_head", "masked_logits"]

log = logging.getLogger(__name__)

# Everything the result depends on besides the encoder and the text; part of the file's name.
STEPS = 300
BATCH_SIZE = 16
MAX_LENGTH = 64
LEARNING_RATE = 1e-3
LINES = 20_000


class _Given(nn.Module):
    """In an encoder's place: states that have been computed already."""

    def __init__(self) -> None:
        super().__init__()
        self.states = torch.empty(0)

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.states)


def masked_logits(model: Any, encoder: nn.Module, inputs: dict[str, Tensor], scored: Tensor) -> Tensor:
    """Logits (n, vocabulary) at the n scored positions (batch, length) of `encoder` under `model`'s head."""
    return logits_of_states(model, encoder, encoder(**inputs).last_hidden_state, inputs["input_ids"], scored)


def logits_of_states(model: Any, encoder: nn.Module, states: Tensor, ids: Tensor, scored: Tensor) -> Tensor:
    """The same of states (batch, length, width) that the encoder has computed for token ids (batch, length).

    The head sees the scored positions alone: with a vocabulary of tens of thousands it costs more than the encoder.
    """
    given = _put_aside(model, encoder)
    given.states = states[scored][None]
    logits: Tensor = model(input_ids=ids).logits[0]
    return logits


def _put_aside(model: Any, encoder: nn.Module) -> _Given:
    """What stands in the place of `model`'s own encoder, for the states of another one; put there if it isn't yet."""
    given = getattr(model, model.base_model_prefix)
    if not isinstance(given, _Given):
        given = _Given()
        setattr(model, model.base_model_prefix, given)
        # Some heads read the output embeddings there. Not as a part of it: the encoder holds them.
        vars(given)["embeddings"] = getattr(encoder, "embeddings", None)
    return given


def masked_head(task: Task) -> Any:
    """The masked-language model of a task's backbone, frozen, for the states of the task's encoder in place of its own.

    None where the backbone's files have no such head, or its kind none at all.
    """
    from transformers import AutoModelForMaskedLM

    try:
        model, missing = task.load(AutoModelForMaskedLM, backbones.fetch(task.backbone))
    except InputError:
        return None
    if missing:
        return None
    _put_aside(model, task.encoder)
    return model.eval().requires_grad_(False)


class _HeadFit(pl.LightningModule):
    def __init__(self, model: Any, missing: list[str]) -> None:
        super().__init__()
        self.encoder = getattr(model, model.base_model_prefix).eval()
        self.model = model.requires_grad_(False)
        self.fitted = [p for name, p in model.named_parameters() if name in missing]
        for parameter in self.fitted:
            parameter.requires_grad_(True)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        labels = batch.pop("labels")
        scored = labels != -100
        loss = F.cross_entropy(masked_logits(self.model, self.encoder, dict(batch), scored), labels[scored])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.fitted, lr=LEARNING_RATE, weight_decay=0.0)


def fitted_head(source: str, text: str, device: torch.device) -> Any:
    """The encoder's masked-language model, frozen, with a head that was fitted to its states once.

    What the encoder's files lack (a transformation and a bias; the output embeddings are its own)
    is trained for 300 steps on a text with everything else frozen, and kept in this package's cache.

    Args:
        source: the encoder's folder.
        text: as in `MaskedText`.
        device: on which to fit.

    Raises:
        InputError: an encoder of a kind that has no masked-language head; a text that can't be had.
    """
    from transformers import AutoModelForMaskedLM

    from lit_spectral.datamodules import MaskedText
    from lit_spectral.datamodules.corpora import read_passages

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what is missing starts at random
        model, missing = backbones.load_model(AutoModelForMaskedLM, source)
        parameters = dict(model.named_parameters())
        known = parameters_digest(p for name, p in parameters.items() if name not in missing)
        lines = list(islice(read_passages(text), LINES))
        recipe = repr((known, STEPS, BATCH_SIZE, MAX_LENGTH, LEARNING_RATE, LINES, lines))
        digest = hashlib.blake2b(recipe.encode(), digest_size=8).hexdigest()
        file = cache_folder("heads") / f"{digest}.safetensors"

        def fit() -> dict[str, Tensor]:
            log.warning("retention: fitting a masked-language head on %s, once", text)
            options: dict[str, Any] = {"batch_size": BATCH_SIZE, "max_length": MAX_LENGTH, "tokenizer": source}
            return _fit(model, missing, MaskedText(text, limit=LINES, **options), device)

        fitted = tensor_files.kept(file, fit, "retention: the head")
    with torch.no_grad():
        for name, value in fitted.items():
            parameters[name].copy_(value)
    return model.eval().requires_grad_(False)


def _fit(model: Any, missing: list[str], data: Any, device: torch.device) -> dict[str, Tensor]:
    """Fit what was missing; its values, by name."""
    encoder = getattr(model, model.base_model_prefix)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    options |= {"accelerator": device.type, "devices": 1 if device.type == "cpu" else [device.index or 0]}
    trainer = pl.Trainer(max_steps=STEPS, gradient_clip_val=1.0, limit_val_batches=0, **options)
    trainer.fit(_HeadFit(model, missing), data)
    setattr(model, model.base_model_prefix, encoder)
    return {name: p.detach().cpu() for name, p in model.named_parameters() if name in missing}
