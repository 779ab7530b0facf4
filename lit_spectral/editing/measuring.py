"""What a decoder says to the prompts of a study, and how likely it holds answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lit_spectral.bars import track
from lit_spectral.datamodules.edits import Edit, Edits, Probe
from lit_spectral.generation import generate_after
from lit_spectral.reading import evaluating
from lit_spectral.scoring.answers import words
from lit_spectral.tasks.causal_lm import scored_logits

__all__ = ["Answered", "Asked", "Edited", "Held", "Measured", "held", "measure", "with_own_answers"]

# Tokens that an answer may have beyond the longest that is looked for: the end of its last word.
MORE = 3
# What the backbone says where no answer is known: words that count, and tokens in which they have room.
_OPENING = re.compile(r"[^\w\n]*\w+(?:[^\w\n]+\w+){0,2}")
OPENING_TOKENS = 16
# Rows that go through the model together.
ROWS = 32


class Asked(NamedTuple):
    """Token ids of what is given, special ones included, and of an answer."""

    given: Sequence[int]
    answer: Sequence[int]


class Held(NamedTuple):
    """The answer's log-probability, in nats, summed over its tokens; whether each is the likeliest where it stands."""

    log_probability: float
    greedy: bool


class Edited(NamedTuple):
    """What is said to an edit's prompt, and the log-probabilities of its new and its old answer."""

    text: str
    new: float
    old: float


class Answered(NamedTuple):
    """What is said to an unrelated prompt, and its answer's log-probability."""

    text: str
    log_probability: float


class Measured(NamedTuple):
    """Of one adapter, or the backbone alone, in the order of the edits and of the unrelated prompts."""

    edits: Sequence[Edited]
    unrelated: Sequence[Answered]


def measure(model: Any, data: Edits, edits: Sequence[Edit], probes: Sequence[Probe]) -> Measured:
    """What a model says and holds; every answer is a greedy one, and nothing is drawn.

    Args:
        model: a decoder of transformers or peft; in eval mode while it runs.
        data: says how a prompt and an answer are laid out.
        edits: of which prompts, old and new answers count.
        probes: unrelated prompts with their answers.
    """
    wanted = [(edit.prompt, answer) for edit in edits for answer in (edit.new, edit.old)]
    asked = [Asked(*data.laid_out(*pair)) for pair in [*wanted, *((probe.prompt, probe.answer) for probe in probes)]]
    weighed = [each.log_probability for each in held(model, asked)]
    pairs, rest = weighed[: 2 * len(edits)], weighed[2 * len(edits) :]
    once = [*asked[: 2 * len(edits) : 2], *asked[2 * len(edits) :]]
    longest = max((len(each.answer) for each in asked), default=0)
    texts = generate_after(model, data.tokenizer, [each.given for each in once], longest + MORE, ROWS)
    return Measured(
        [Edited(*each) for each in zip(texts, pairs[::2], pairs[1::2], strict=False)],
        [Answered(*each) for each in zip(texts[len(edits) :], rest, strict=True)],
    )


def with_own_answers(model: Any, data: Edits, probes: Sequence[Probe]) -> list[Probe]:
    """Those without an answer get what the backbone says first, three words at most, or are left out if it says none.

    Args:
        model: the backbone alone.
        data: as in `measure`.
        probes: unrelated prompts.
    """
    lacking = [number for number, probe in enumerate(probes) if not words(probe.answer)]
    given = [data.laid_out(probes[number].prompt, "")[0] for number in lacking]
    texts = generate_after(model, data.tokenizer, given, OPENING_TOKENS, ROWS)
    openings = {n: _OPENING.match(text.lstrip("\n")) for n, text in zip(lacking, texts, strict=True)}
    answers = {n: opening[0] for n, opening in openings.items() if opening}
    found = [probe._replace(answer=answers.get(n, "")) if n in openings else probe for n, probe in enumerate(probes)]
    return [probe for probe in found if words(probe.answer)]


def held(model: Any, asked: Sequence[Asked]) -> list[Held]:
    """How likely a decoder holds answers, by teacher forcing; an empty one has log-probability 0, and is greedy.

    Args:
        model: a decoder of transformers or peft; in eval mode while it runs.
        asked: in any order, which is that of what is returned.
    """
    found: dict[int, Held] = {}
    order = sorted(range(len(asked)), key=lambda index: -len(asked[index].given) - len(asked[index].answer))
    device = model.get_input_embeddings().weight.device
    with evaluating(model), torch.no_grad():
        for start in track(range(0, len(order), ROWS), "weighing answers"):
            members = order[start : start + ROWS]
            logits, wanted, scored = scored_logits(model, _batch([asked[n] for n in members], device))
            losses = F.cross_entropy(logits.float(), wanted, reduction="none").double()
            missed = (logits.argmax(-1) != wanted).double()
            zeros, row = torch.zeros(len(members), dtype=torch.float64, device=device), scored.nonzero()[:, 0]
            sums, misses = (zeros.index_add(0, row, each).tolist() for each in (-losses, missed))
            found |= {n: Held(sums[place], not misses[place]) for place, n in enumerate(members)}
    return [found[index] for index in range(len(asked))]


def _batch(asked: Sequence[Asked], device: torch.device) -> dict[str, Tensor]:
    """Rows padded on the right, as `CausalLM` takes them."""
    rows = [torch.tensor([*each.given, *each.answer]) for each in asked]
    labels = [torch.tensor([*[-100] * len(each.given), *each.answer]) for each in asked]
    padded = {"input_ids": (rows, 0), "attention_mask": ([torch.ones_like(row) for row in rows], 0)}
    return {
        name: pad_sequence(parts, batch_first=True, padding_value=value).to(device)
        for name, (parts, value) in (padded | {"labels": (labels, -100)}).items()
    }
