"""The distance of an adapted model from its base model, while it trains, and what keeps it small."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import functional as F

from lit_spectral import backbones, tensor_files
from lit_spectral.backbone_digest import parameters_digest
from lit_spectral.datamodules.corpora import check_corpus
from lit_spectral.datamodules.masked_text import mask_tokens
from lit_spectral.errors import InputError
from lit_spectral.generation import sample
from lit_spectral.paths import cache_folder
from lit_spectral.progress import step_seed
from lit_spectral.reading import evaluating
from lit_spectral.retention.base_model import base_model, changed_weights, inner_model, own_parameters
from lit_spectral.retention.head import logits_of_states, masked_head
from lit_spectral.retention.measures import mean_pooled
from lit_spectral.retention.texts import INPUTS, PROMPTS, next_tokens, prompt_positions, text_of
from lit_spectral.sharding import is_sharded
from lit_spectral.tasks import Anchor, CausalLM, MaskedLM, Task

__all__ = ["Anchoring", "check_base", "check_text"]

# Training rows of which one must have a prompt.
LOOKED_AT = 256


class _Batch(NamedTuple):
    """What a model is given, and the positions (rows, length) whose predictions count; of states all rows do."""

    inputs: dict[str, Tensor]
    scored: Tensor


def check_text(task: Task, settings: Anchor) -> None:
    """InputError for a text that can't be had, or none for this task; needs no model."""
    with _named():
        if settings.text == "self":
            if not isinstance(task, CausalLM):
                raise InputError("self is for decoders, since an encoder generates nothing; give prompts or a corpus")
        elif settings.text == PROMPTS:
            if isinstance(task, MaskedLM):
                raise InputError("masked words have no prompts apart from what is to be restored; give a corpus")
        else:
            check_corpus(settings.text)


def check_base(task: Task) -> None:
    """InputError where the task's base model can't be had by passing over its adapters."""
    method = type(task.method).__name__
    if changed := sorted(changed_weights(task) - set(task.new_weights)):
        raise InputError(
            f"model.anchor: {method} trains the backbone's own weights ({changed[0]}, …), after which there is no base "
            "model to stay near; give a method of adapters, LoRA say, or weight 0"
        )
    if inner_model(task) is not task.model and not isinstance(task, (CausalLM, MaskedLM)):
        raise InputError(
            f"model.anchor: the learned prompt of {method} is no part of the encoder that it is put before; give a "
            "method that adapts weights, or weight 0"
        )


class Anchoring:
    """A text on which a task's model is held near its base model during a fit.

    Args:
        task: with its model configured and its trainer attached.
        settings: what to do.

    Raises:
        InputError: as `check_text`; training rows without a prompt; a text that is too short.
    """

    def __init__(self, task: Task, settings: Anchor) -> None:
        self.settings = settings
        self._texts: list[dict[str, Tensor]] = []  # rows of a fixed text
        self._collate: Any = None
        self._seen: list[dict[str, Tensor]] = []  # batches of the step
        self._head: Any = None
        if isinstance(task, MaskedLM):
            self._head = inner_model(task)
        elif not isinstance(task, CausalLM):
            self._head = masked_head(task)
        self._tokenizer = backbones.load_tokenizer(backbones.fetch(task.backbone), loading=task.loading)
        with _named(), isolate_rng():
            if settings.text == PROMPTS:
                _check_prompts(task)
            elif settings.text == "self":
                self._generate(task)
            else:
                sizes = (settings.limit, settings.max_length, settings.batch_size)
                data = text_of(task, settings.text, self._head is not None, *sizes)
                self._texts, self._collate = data.splits["val"], data.collate

    def note(self, batch: Any, step: int, first: bool) -> None:
        """Remember a batch that a step is made of, if that step needs it."""
        if first:
            self._seen = []
        if self.settings.text == PROMPTS and self.settings.is_due(step):
            self._seen.append(batch)

    def add_gradients(self, task: Task) -> Tensor:
        """Add λ·every·∂D to the gradients of what is trained, on all processes alike; returns D, 0-d.

        D is the mean over all that is counted on all processes. Backward passes are of sums: in float16 the gradients
        of a mean over thousands of tokens would vanish.
        """
        parameters = [p for p in task.model.parameters() if p.grad is not None]
        added = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        total = torch.zeros(2, dtype=torch.float64, device=task.device)  # sum and count
        with evaluating(task):
            for batch in self._batches(task):
                distance, count = self._distance(task, batch)
                total += torch.stack([distance.detach().double(), count.double()])
                for mine, gradient in zip(added, _gradients(distance, parameters), strict=True):
                    if gradient is not None:
                        mine += gradient
        self._seen = []
        summed, count = task.trainer.strategy.reduce(total, reduce_op="sum")
        factor = self.settings.weight * self.settings.every / float(count.clamp(min=1))
        everywhere = task.trainer.strategy.reduce(torch.cat([g.flatten() for g in added]), reduce_op="sum")
        for parameter, gradient in zip(parameters, everywhere.split([g.numel() for g in added]), strict=True):
            assert parameter.grad is not None
            parameter.grad += factor * gradient.view_as(parameter)
        mean: Tensor = summed / count.clamp(min=1)
        return mean.float()

    def _distance(self, task: Task, batch: _Batch) -> tuple[Tensor, Tensor]:
        """The distance summed over what is counted, 0-d with its graph, and how much that is, 0-d."""
        precision = task.trainer.precision_plugin
        # In contexts of their own: autocast would keep weights that it has cast where no gradient is wanted.
        with torch.no_grad(), precision.forward_context(), base_model(task, {}):
            base = self._outputs(task, batch).float()
        with precision.forward_context(), _checkpointed(task.model):
            adapted = self._outputs(task, batch).float()
        if not self._by_tokens(task):
            return (1 - F.cosine_similarity(adapted, base)).sum(), torch.tensor(len(base), device=base.device)
        ours, theirs = (F.log_softmax(logits, dim=-1) for logits in (adapted, base))
        return F.kl_div(ours, theirs, reduction="sum", log_target=True), batch.scored.sum()

    def _outputs(self, task: Task, batch: _Batch) -> Tensor:
        """Logits of what is scored (n, vocabulary), or mean-pooled states (rows, width)."""
        model, inputs = task.model, batch.inputs
        if isinstance(task, (CausalLM, MaskedLM)):
            options = {"use_cache": False} if isinstance(task, CausalLM) else {}
            logits: Tensor = model(**inputs, **options).logits
            return logits[:, -batch.scored.shape[1] :][batch.scored]  # behind what a learned prompt puts in front
        # Through the whole model, as it trains: what shards hold, and what a decoder of an encoder is given, is there.
        found: list[Tensor] = []
        hook = task.encoder.register_forward_hook(lambda module, args, output: found.append(output[0]))
        try:
            model(**inputs)
        finally:
            hook.remove()
        if self._head is None:
            return mean_pooled(found[0], inputs["attention_mask"])
        head = self._head.to(task.device, next(task.encoder.parameters()).dtype)
        of_words: Tensor = logits_of_states(head, task.encoder, found[0], inputs["input_ids"], batch.scored)
        return of_words

    def _by_tokens(self, task: Task) -> bool:
        return self._head is not None or isinstance(task, CausalLM)

    def _batches(self, task: Task) -> Iterator[_Batch]:
        """Those of a step, on this process."""
        step, seed, rank = task.trainer.global_step, task.seed_of_steps, task.trainer.global_rank
        if self.settings.text == PROMPTS:
            generator = torch.Generator().manual_seed(step_seed(seed, step, f"anchor {rank}"))
            for batch in self._seen:
                yield self._prompts(task, batch, generator)
            return
        generator = torch.Generator().manual_seed(step_seed(seed, step, "anchor"))
        order = torch.randperm(len(self._texts), generator=generator)
        size = min(self.settings.batch_size, len(order))
        chosen = order[torch.arange(rank * size, (rank + 1) * size) % len(order)].tolist()
        rows = [self._texts[index] for index in chosen]
        batch = {name: tensor.to(task.device) for name, tensor in self._collate(rows).items()}
        labels = batch.pop("labels", batch["input_ids"])
        scored = (next_tokens(labels) if isinstance(task, CausalLM) else labels) != -100
        yield _Batch({name: batch[name] for name in INPUTS if name in batch}, scored)

    def _prompts(self, task: Task, batch: dict[str, Tensor], generator: torch.Generator) -> _Batch:
        """What a batch asks, without what it answers; where words are to be masked, with some masked."""
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        ids = inputs["input_ids"]
        if isinstance(task, CausalLM):
            scored = prompt_positions(batch)
            # Nothing is asked behind the last prompt, on which no prompt depends.
            width = max(int(scored.any(0).nonzero().max()) + 1 if scored.any() else 1, 1)
            return _Batch({name: tensor[:, :width] for name, tensor in inputs.items()}, scored[:, :width])
        if self._head is None:
            return _Batch(inputs, torch.ones_like(ids, dtype=torch.bool))
        special = torch.isin(ids, torch.tensor(self._tokenizer.all_special_ids, device=ids.device))
        draws = torch.rand(ids.shape, generator=generator).to(ids.device)
        masked, labels = mask_tokens(ids, special, draws, self._tokenizer)
        return _Batch(inputs | {"input_ids": masked}, labels != -100)

    def _generate(self, task: Task) -> None:
        """Let the base model write, once for all runs; the same texts in a run that goes on, and on all processes."""
        seed = step_seed(task.seed_of_steps, 0, "anchor's text")
        length = min(self.settings.max_length, int(self._tokenizer.model_max_length))
        rows, precision, own = self.settings.limit or 1, task.trainer.precision_plugin, own_parameters(task)

        def write() -> dict[str, Tensor]:
            torch.manual_seed(seed)
            with evaluating(task), precision.forward_context(), base_model(task, {}):
                said = sample(task.model, self._tokenizer, rows, length)
            return {name: tensor.cpu().contiguous() for name, tensor in said.items()}

        if any(is_sharded(parameter) for parameter in own):  # all processes write together, and none may wait
            texts = write()
        else:
            kind = (rows, length, seed, precision.precision, own[0].dtype, task.device.type)
            ends = (self._tokenizer.all_special_ids, task.model.generation_config.eos_token_id)
            recipe = repr(("anchor", parameters_digest(own), *kind, *ends))
            file = cache_folder("texts") / f"{tensor_files.content_digest(recipe)}.safetensors"
            texts = tensor_files.kept(file, write, "model.anchor.text: what self says")
        texts["labels"] = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
        self._texts = [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]
        self._collate = torch.utils.data.default_collate


def _check_prompts(task: Task) -> None:
    """InputError where a decoder's rows, as far as they can be looked at, have no prompt that is not scored."""
    data: Any = getattr(task.trainer, "datamodule", None)
    rows = getattr(data, "splits", {}).get("train")
    if rows is None or not isinstance(task, CausalLM):
        return
    looked_at = range(min(len(rows), LOOKED_AT))
    if not any(prompt_positions(data.collate([rows[index]])).any() for index in looked_at):
        raise InputError("the rows have no prompts apart from what is trained on; give self, or a corpus")


@contextmanager
def _checkpointed(model: torch.nn.Module) -> Iterator[None]:
    """Within it, layers with gradient checkpointing, which transformers has in training alone, have it in eval mode."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [  # a Module's attributes are typed as tensors or modules
        m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing
    ]
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(setattr, layer, "_gradient_checkpointing_func", layer._gradient_checkpointing_func)
            stack.callback(setattr, layer, "training", layer.training)
            layer._gradient_checkpointing_func = partial(_as_in_eval, layer, layer._gradient_checkpointing_func)
            layer.training = True
        yield


def _as_in_eval(layer: torch.nn.Module, compute: Any, *args: Any) -> Any:
    """What a layer computes once it has decided to be computed again: without dropout of its own."""
    layer.training = False
    try:
        return compute(*args)
    finally:
        layer.training = True


def _gradients(distance: Tensor, parameters: list[Any]) -> tuple[Tensor | None, ...]:
    """Autograd's, past the hooks by which DDP waits for a backward pass; none where nothing depends on them."""
    if not distance.requires_grad:
        return (None,) * len(parameters)
    return torch.autograd.grad(distance, parameters, allow_unused=True)


@contextmanager
def _named() -> Iterator[None]:
    """Within it, what is wrong is said of the setting that names the text."""
    try:
        yield
    except InputError as error:
        said = str(error).removeprefix("data.path: ")  # as of a data module's own settings
        for theirs, ours in (("data.path", "model.anchor.text"), ("data.max_length", "model.anchor.max_length")):
            said = re.sub(rf"(?<![\w/.]){re.escape(theirs)}\b", ours, said)
        raise InputError(said if said.startswith("model.anchor") else f"model.anchor.text: {said}") from error
