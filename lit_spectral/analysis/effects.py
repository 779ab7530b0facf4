"""What adapters do to their backbone as a model: how far its predictions and hidden states move on texts."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_spectral.adapters import named_changes
from lit_spectral.analysis.measuring import Place, place_of
from lit_spectral.analysis.states import Moments, linear_cka, procrustes_residual
from lit_spectral.bars import Progress
from lit_spectral.reading import evaluating
from lit_spectral.retention.measures import TokenScores, kl_divergence, token_scores
from lit_spectral.retention.retention import Batch, Outputs, Retention
from lit_spectral.tasks import CausalLM, Task

__all__ = ["SWITCHES", "Distance", "Effect", "Switched", "effects", "groups_of", "only"]

log = logging.getLogger(__name__)

# What is switched at a time.
SWITCHES = ("layers", "modules")


class Distance(NamedTuple):
    """Between a layer's hidden states in the backbone and in the adapted model: `linear_cka`, `procrustes_residual`."""

    cka: float
    procrustes: float


class Switched(NamedTuple):
    """KL(base ‖ adapted), nats a token, `without` the ΔW of one place and with it `alone`.

    A place is a map, or with an empty kind a whole layer. What was trained whole acts in both.
    """

    place: Place
    without: float
    alone: float


class Effect(NamedTuple):
    """Of one adapter on one text.

    `tokens` in nats a token: `kl` KL(base ‖ adapted); `forgetting_loss`, the adapted model's cross-entropy to the base
    model's predictions (MiLoRA §5.4), and `base_entropy`, their own, which is `kl` less; `loss` and `base_loss` to the
    text. Empty for an encoder without a masked-language head. `states` of the embeddings (0) and behind each layer.
    `switched` by the path of a map, or the name of a layer; empty where nothing was switched.
    """

    tokens: dict[str, float]
    states: list[Distance]
    switched: dict[str, Switched]


def groups_of(paths: Collection[str], by: str | None) -> dict[str, list[str]]:
    """What is switched at a time, by name: each map by itself (`modules`), or a layer's (`layers`); None for nothing.

    Maps that are in no layer are by themselves.
    """
    groups: dict[str, list[str]] = {}
    # An encoder's layers and a decoder's have the same numbers.
    stacks = {re.split(r"(?:^|\.)\d+\.", path, maxsplit=1)[0] for path in paths if place_of(path).layer is not None}
    for path in paths if by is not None else ():
        layer, stack = place_of(path).layer, re.split(r"(?:^|\.)\d+\.", path, maxsplit=1)[0]
        name = f"layer {layer}" if len(stacks) == 1 else f"{stack} layer {layer}"
        groups.setdefault(path if by == "modules" or layer is None else name, []).append(path)
    return groups


def effects(task: Task, retention: Retention, switch: str | None = None) -> dict[str, Effect]:
    """Measure what an adapter does on each text, batch by batch, by the text's name.

    Besides what one batch takes, moments of the states are held, three (width, width) matrices a layer. States are
    those of all tokens that aren't padding, of a decoder without each window's first, whose activations are so large
    (Sun et al., 2024, 2402.17762) that they would be all that is seen. Of an encoder with a masked-language head some
    tokens are masked.

    Args:
        task: of `lit_spectral.checkpoint.load_given`, whose adapter can be switched. It is afterwards as it was.
        retention: with the texts, prepared for this task.
        switch: one of `SWITCHES`: also switch each layer's, or map's, ΔW off, and all others'. That takes two more
            forward passes of each.
    """
    if switch is not None and not retention.by_tokens(task):
        log.warning("analyze: without a masked-language head there are no predictions, and nothing is switched")
        switch = None
    groups = groups_of(list(named_changes(task.model)), switch)
    passes = 2 + 2 * len(groups)
    found = {}
    with evaluating(task), torch.no_grad(), Progress(transient=True) as progress:
        for name in retention.corpora:
            total = retention.count(name) * passes
            bar = progress.add_task(f"forward passes on {name}", total=total)
            found[name] = _effect(task, retention, name, groups, lambda bar=bar: progress.advance(bar))
    return found


@contextmanager
def only(task: Task, paths: Collection[str]) -> Iterator[None]:
    """Within it, of the adapter only the ΔW of these maps act. No weight is written to."""
    changes: Mapping[str, Any] = named_changes(task.model)
    scales = {path: change.scale for path, change in changes.items()}
    try:
        for path, change in changes.items():
            change.scale = scales[path] if path in paths else 0.0
        yield
    finally:
        for path, change in changes.items():
            change.scale = scales[path]


def _effect(task: Task, retention: Retention, name: str, groups: Mapping[str, list[str]], step: Any) -> Effect:
    every = set(named_changes(task.model))
    sums, kl = torch.zeros(len(TokenScores._fields), dtype=torch.float64), 0.0
    moments: list[Moments] = []
    switched = {group: [0.0, 0.0] for group in groups}
    for batch in retention.batches(task, name):
        adapted = retention.outputs(task, batch, states=True)
        with retention.base(task):
            base = retention.outputs(task, batch, states=True)
        moments = moments or [Moments() for _ in base.states]
        _add(moments, batch, base, adapted, int(isinstance(task, CausalLM)))
        base, adapted = base._replace(states=()), adapted._replace(states=())
        step(), step()
        if base.logits is None or adapted.logits is None:
            continue
        sums += torch.stack(token_scores(adapted.logits, base.logits, batch.wanted[batch.scored])).cpu()
        kl += float(kl_divergence(adapted.logits, base.logits))
        del adapted
        for group, paths in groups.items():
            for which, on in enumerate((every.difference(paths), paths)):
                with only(task, on):
                    logits: Any = retention.outputs(task, batch).logits
                switched[group][which] += float(kl_divergence(logits, base.logits))
                step()
    states = [Distance(linear_cka(each), procrustes_residual(each)) for each in moments]
    if not sums[-1]:
        return Effect({}, states, {})
    scores, tokens = TokenScores(*(sums / sums[-1]).tolist()), float(sums[-1])
    named = {each: float(getattr(scores, each)) for each in ("forgetting_loss", "base_entropy", "loss", "base_loss")}
    places = {group: place_of(paths[0]) if group == paths[0] else Place(place_of(paths[0]).layer, "")
              for group, paths in groups.items()}  # fmt: skip
    each = {group: Switched(places[group], *(value / tokens for value in pair)) for group, pair in switched.items()}
    return Effect({"kl": kl / tokens, **named}, states, each)


def _add(moments: list[Moments], batch: Batch, base: Outputs, adapted: Outputs, left_out: int) -> None:
    ids = batch.inputs["input_ids"]
    read: Tensor = batch.inputs.get("attention_mask", torch.ones_like(ids)).bool()
    read = read & (torch.arange(ids.shape[1], device=ids.device) >= left_out)
    for each, one, other in zip(moments, base.states, adapted.states, strict=True):
        each.add(one[read], other[read])
