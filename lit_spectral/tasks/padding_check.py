"""Whether a row's result is the same alone and beside longer rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from lit_spectral.datamodules.text import TextDataModule
from lit_spectral.errors import InputError
from lit_spectral.reading import evaluating

__all__ = ["Side", "check_length", "check_padding", "check_tokens"]

Side = Literal["left", "right"]
# By how many standard deviations results may differ in float32: of any model, and of one whose own rounding is larger.
ROUNDING, MOST_ROUNDING = 1e-4, 3e-3
TEXTS = ["one two three", "four five six seven eight nine ten eleven twelve"]


def check_padding(model: Any, tokenizer: Any) -> Side:
    """The side on which rows are to be padded, as two short texts show, each alone and both in a batch.

    On the right where that is possible: positions of most architectures are counted from the left, padding
    included. Costs a few passes of a dozen tokens; leaves the model's mode as it was.

    Args:
        model: with its head, adapted or not, in the precision of its weights.
        tokenizer: whose padding token it is.

    Raises:
        InputError: a row's result depends on padding on either side or is not finite, or the tokenizer has tokens
            that the model hasn't.
    """
    encoded = tokenizer(TEXTS)
    rows = [{name: values[index] for name, values in encoded.items()} for index in range(len(TEXTS))]
    _check_known(model, tokenizer, [tokenizer.pad_token_id, *(token for row in rows for token in row["input_ids"])])
    try:
        with evaluating(model):
            alone = [_results(model, tokenizer, [row], "right")[0] for row in rows]
            differences = {side: _difference(alone, _results(model, tokenizer, rows, side)) for side in _SIDES}
            exact = (
                alone[0].dtype in {torch.float32, torch.float64} and torch.get_float32_matmul_precision() == "highest"
            )
            rounding = ROUNDING if exact else 0.1
            if exact and ROUNDING < min(differences.values()) < MOST_ROUNDING:
                # Beside a copy of itself no row is padded: what it differs by is the rounding of larger products.
                beside = [_results(model, tokenizer, [row, row], "right")[0] for row in rows]
                rounding = min(MOST_ROUNDING, max(ROUNDING, 8 * _difference(alone, beside)))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if torch.get_default_dtype() != torch.float32 or next(model.parameters()).dtype != torch.float32:
            raise InputError(
                f"backbone: under this method it can't be run in that precision ({reason}); give --model.dtype float32 "
                "and --trainer.precision bf16-mixed"
            ) from error
        raise InputError(
            f"backbone: it can't read rows padded with {tokenizer.pad_token!r} ({reason}); "
            "give its config.json and tokenizer the pad token that it was trained with"
        ) from error
    if not all(logits.isfinite().all() for logits in alone):
        raise InputError("backbone: its scores of a short text are not finite; give weights that haven't diverged")
    for side in _SIDES:
        if differences[side] <= rounding:
            return side
    raise InputError(
        f"backbone: under this method a row's result depends on the padding beside it (by {differences['right']:.2g} "
        "standard deviations); give another backbone or method, or --data.batch_size 1 --data.eval_batch_size 1"
    )


def check_tokens(model: Any, data: TextDataModule) -> None:
    """InputError where a row has a token that the backbone has not."""
    # Some tokenizers have tokens to spare, which no text gets.
    if max(data.tokenizer.get_vocab().values()) >= model.get_input_embeddings().weight.shape[0]:
        for rows in data.splits.values():
            for row in rows:
                _check_known(model, data.tokenizer, row["input_ids"])


def _check_known(model: Any, tokenizer: Any, tokens: Iterable[int]) -> None:
    known, largest = model.get_input_embeddings().weight.shape[0], max(tokens, default=0)
    if largest >= known:
        raise InputError(
            f"data.tokenizer: its token {tokenizer.convert_ids_to_tokens(largest)!r} is number {largest}, and the "
            f"backbone has {known}; give the backbone's own tokenizer"
        )


def check_length(model: Any, data: TextDataModule) -> None:
    """InputError where a row has more tokens than the backbone has positions, if it can't do with more.

    Tried with one row of that length where the config says fewer; by most, positions are counted in angles.
    """
    tokenizer, positions = data.tokenizer, getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int):
        return
    room = positions - (tokenizer.pad_token_id or 0) - 1  # some begin to count after the padding's number
    # Rows are counted only where they may be too long.
    if data.max_length <= room or (longest := data.longest_row()) <= room:
        return
    token = next(iter(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)))
    row = torch.full((1, longest), token, device=model.get_input_embeddings().weight.device)
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(input_ids=row, attention_mask=torch.ones_like(row))
    except (RuntimeError, IndexError, ValueError) as error:
        raise InputError(
            f"data.max_length: a row has {longest} tokens, and the backbone has {positions} positions, some of which "
            f"it may keep for itself; give --data.max_length {positions - 2} or less"
        ) from error
    finally:
        model.train(training)


_SIDES: tuple[Side, Side] = ("right", "left")


@torch.no_grad()
def _results(model: Any, tokenizer: Any, rows: list[dict[str, Any]], side: Side) -> list[Tensor]:
    """Of each row in a batch of them the logits, (classes,), or those of its own tokens, (tokens, …)."""
    device = model.get_input_embeddings().weight.device
    batch = tokenizer.pad(rows, padding_side=side, return_tensors="pt").to(device)
    with torch.autocast(device.type, enabled=False):
        outputs = model(**batch)
    spans = hasattr(outputs, "start_logits")
    logits: Tensor = outputs.start_logits if spans else outputs.logits
    if not spans and logits.ndim == 2:
        return list(logits)
    # Counted from the end: prompt methods put virtual tokens in front.
    own = logits[:, -batch["input_ids"].shape[1] :]
    return [of_row[mask] for of_row, mask in zip(own, batch["attention_mask"].bool(), strict=True)]


def _difference(alone: list[Tensor], together: list[Tensor]) -> float:
    """The root mean square by which one token's logits (or a row's) differ at most, in standard deviations of all."""
    spread = torch.cat([each.flatten() for each in alone]).float().std().clamp(min=1e-6)
    differences = [(a - b).float().square().mean(-1).sqrt().max() for a, b in zip(alone, together, strict=True)]
    return float(torch.stack(differences).max() / spread)
