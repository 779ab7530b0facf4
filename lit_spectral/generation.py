"""Text that a decoder generates after prompts, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_spectral.bars import Progress, track
from lit_spectral.errors import InputError, refusals_of
from lit_spectral.reading import evaluating

__all__ = ["continue_batch", "draw", "generate", "generate_after", "pad_left", "sample"]

# Transformers' defaults, spelt out: what is left open is taken from the backbone's own files.
PLAIN: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}
# Rows that are sampled together.
SAMPLED = 32


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Token ids as `input_ids` and `attention_mask` (rows, longest), padded on the left: new tokens go to the right."""
    longest = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([[pad_token_id] * (longest - len(row)) + list(row) for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }


def continue_batch(
    model: Any, tokenizer: Any, batch: dict[str, Tensor], max_new_tokens: int, settings: dict[str, Any] | None = None
) -> list[str]:
    """What the model says after each prompt of a batch, without special tokens.

    Adapters stay in place. The result depends on nothing but prompts and settings: greedy unless
    they say otherwise, whatever the backbone's own generation settings are; what is sampled follows
    torch's seed.

    Args:
        model: a decoder of transformers or peft, in eval mode.
        tokenizer: its tokenizer.
        batch: `input_ids` and `attention_mask` (rows, length), padded on the left, where the model is.
        max_new_tokens: tokens after which an answer is cut off.
        settings: of transformers' `GenerationConfig`, such as `num_beams`, `temperature`, `top_p`, `stop_strings`.

    Raises:
        InputError: a setting that there isn't, that is said otherwise, or whose value is none.
    """
    import transformers

    make: Any = transformers.GenerationConfig  # it has no types
    chosen = PLAIN | (settings or {})
    # Here, since transformers' own way takes few kinds of tokenizers.
    stop = chosen.pop("stop_strings", None)
    unknown = sorted(set(chosen) - set(make().to_dict()))
    if unknown:
        raise InputError(f"data.generation: there is no {', '.join(unknown)} among transformers' generation settings")
    if elsewhere := sorted(_ELSEWHERE & set(chosen)):
        raise InputError(f"data.generation: leave out {', '.join(elsewhere)}; lengths are data.max_new_tokens, "
                         "and each prompt has one answer, a text")  # fmt: skip
    ends = _ends(model, tokenizer)
    if stop is not None and not (stop and all(isinstance(text, str) and text for text in _listed(stop))):
        raise InputError(f"data.generation: stop_strings is a text, or a list of some, not {stop!r}")
    remedy = "give other settings"
    with refusals_of("data.generation", remedy):
        config = make(max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, eos_token_id=ends, **chosen)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    start = inputs["input_ids"].shape[1]
    criteria = [_stop_at(_listed(stop), tokenizer, start)] if stop else []
    # Of the user are the settings alone; without any, what is raised is a bug.
    with torch.no_grad(), refusals_of("data.generation", remedy) if settings else nullcontext():
        ids = model.generate(**inputs, generation_config=config, stopping_criteria=criteria)
    return [_continuation(tokenizer, row, start) for row in ids.tolist()]


# Settings that this module sets itself, or that would change how many answers there are.
_ELSEWHERE = {"max_new_tokens", "max_length", "pad_token_id", "eos_token_id", "num_return_sequences"}
_ELSEWHERE |= {"return_dict_in_generate"}


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a text; a chat model may end its turn with another one than the tokenizer's EOS."""
    own = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})


def _continuation(tokenizer: Any, row: list[int], start: int) -> str:
    """The text of row[start:], blanks at its start included, which tokenizers of words take off a text's beginning."""
    before: str = tokenizer.decode(row[start - 1 : start], skip_special_tokens=True)
    whole: str = tokenizer.decode(row[start - 1 :], skip_special_tokens=True)
    if whole.startswith(before):
        return whole.removeprefix(before)
    alone: str = tokenizer.decode(row[start:], skip_special_tokens=True)  # the prompt ends within a character
    return alone


def _listed(stop: Any) -> list[Any]:
    return list(stop) if isinstance(stop, (list, tuple)) else [stop]


def _stop_at(texts: Sequence[str], tokenizer: Any, start: int) -> Any:
    """A criterion of transformers, which itself remembers what is done: one of the texts was generated just now."""
    tail = max(map(len, texts)) + 1  # tokens; each is at least a character, and the first may lose its blank

    def check(ids: Tensor, scores: Any, **options: Any) -> Tensor:
        last = ids[:, max(start, ids.shape[1] - tail) :]
        # As the answer is given, without special tokens; one of these may be what stops it.
        ends = zip(tokenizer.batch_decode(last, skip_special_tokens=True), tokenizer.batch_decode(last), strict=True)
        return torch.tensor([any(text in end for text in texts for end in pair) for pair in ends], device=ids.device)

    return check


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 256,
    batch_size: int = 8,
    settings: dict[str, Any] | None = None,
) -> list[str]:
    """What the model says after each prompt, in their order, with a progress bar.

    Prompts are tokenised as the tokenizer does it by itself, BOS included where it adds one, and go
    through the model in batches of similar length. Eval mode while it runs; other arguments and
    errors as in `continue_batch`.
    """
    rows: list[list[int]] = tokenizer(list(prompts))["input_ids"]
    return generate_after(model, tokenizer, rows, max_new_tokens, batch_size, settings)


def generate_after(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 8,
    settings: dict[str, Any] | None = None,
) -> list[str]:
    """As `generate`, after prompts that are token ids, special ones included."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    texts = [""] * len(rows)
    device = model.get_input_embeddings().weight.device
    with evaluating(model):
        for start in track(range(0, len(order), batch_size), "generating"):
            members = order[start : start + batch_size]
            batch = pad_left([rows[index] for index in members], tokenizer.pad_token_id)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            said = continue_batch(model, tokenizer, batch, max_new_tokens, settings)
            for index, text in zip(members, said, strict=True):
                texts[index] = text
    return texts


@torch.no_grad()
def draw(
    model: Any, first: int, shape: tuple[int, int], ends: Sequence[int] = (), pad_token_id: int | None = None
) -> Tensor:
    """Token ids of a shape (rows, length): after `first`, each drawn from all that the model holds possible.

    Draws follow torch's seed, at temperature 1. Shows a progress bar.

    Args:
        model: a decoder of transformers or peft, in eval mode.
        first: token that every row begins with.
        shape: of what is drawn; the first token counts, so that the length is at least 2.
        ends: tokens behind which a row is padded; where there are none it goes on with another text, as in training.
        pad_token_id: what it is padded with; None for `first`.
    """
    import transformers

    rows, length = shape
    embeddings: Tensor = model.get_input_embeddings().weight
    bars = Progress(transient=True)
    bar = bars.add_task("the backbone's own text", total=-(-rows // SAMPLED) * (length - 1))

    def advance(ids: Tensor, scores: Any, **options: Any) -> Tensor:
        bars.advance(bar)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    config: Any = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        pad_token_id=first if pad_token_id is None else pad_token_id,
        eos_token_id=list(ends) or len(embeddings),  # none at all would be the backbone's own files'
        **PLAIN | {"do_sample": True, "top_k": 0, "max_new_tokens": length - 1},
    )
    parts = []
    with bars:
        for start in range(0, rows, SAMPLED):
            begun = torch.full((min(SAMPLED, rows - start), 1), first, device=embeddings.device)
            ids = model.generate(
                input_ids=begun,
                attention_mask=torch.ones_like(begun),
                generation_config=config,
                stopping_criteria=[advance],
            )
            parts.append(F.pad(ids, (0, length - ids.shape[1]), value=config.pad_token_id))
    return torch.cat(parts)


def sample(model: Any, tokenizer: Any, rows: int, length: int) -> dict[str, Tensor]:
    """What the model says of itself, as `draw`, after BOS (or EOS, where there is none), until a text ends.

    Args:
        model: a decoder of transformers or peft, in eval mode.
        tokenizer: its tokenizer.
        rows: texts.
        length: tokens of a text at most, the first one included, at least 2.

    Returns:
        `input_ids` and `attention_mask` (rows, longest); a text that has come to its end is padded on the right.

    Raises:
        InputError: a tokenizer that has neither token.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise InputError("backbone: its tokenizer has neither BOS nor EOS for a text to begin with")
    ends = _ends(model, tokenizer)
    ids = draw(model, first, (rows, length), ends, tokenizer.pad_token_id)
    ended = torch.isin(ids, torch.tensor(ends, device=ids.device))
    ended[:, 0] = False  # which may be the token that ends
    before = ended.cumsum(1) - ended.long()
    mask = (before == 0).long()
    longest = int(mask.sum(1).max())
    return {"input_ids": ids[:, :longest], "attention_mask": mask[:, :longest]}
