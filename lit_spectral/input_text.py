"""The text on which a backbone's inputs are looked at: random tokens, what the backbone itself says, or a corpus."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_spectral import backbones, tensor_files
from lit_spectral.backbone_digest import backbone_digest, parameters_digest, same_backbone
from lit_spectral.errors import InputError
from lit_spectral.generation import draw
from lit_spectral.paths import cache_folder
from lit_spectral.reading import Reading, evaluating, window
from lit_spectral.sharding import is_sharded
from lit_spectral.spectra.input_directions import LENGTH, SEQUENCES

__all__ = ["RANDOM", "input_tokens"]

RANDOM = "random"
SELF = "self"


def input_tokens(
    text: str,
    encoder: nn.Module,
    model: nn.Module | None,
    backbone: str,
    digest: str = "",
    seed: int = 0,
    loading: backbones.Loading = backbones.AS_IT_COMES,
) -> Tensor | None:
    """Token ids (rows, length), on the CPU, of at most 8 rows of 128: the same on every process.

    Args:
        text: `random`, for None, which is random tokens; `self`, what the backbone says when it draws each next token
            from all that it holds possible, from the token that begins a text on; or a corpus, whose first windows are
            taken, as `lit_spectral.datamodules.corpora.read_passages` reads it.
        encoder: the backbone's pretrained part.
        model: the whole of it, with a head that predicts next tokens perhaps; None to load that, if need be.
        backbone: its name, for its tokenizer or head; empty where nobody knows.
        digest: of the encoder, as `backbone_digest`; empty where nobody knows.
        seed: of what the backbone says.
        loading: how its files are read, where they are.

    Raises:
        InputError: an encoder, which says nothing; a corpus that can't be had, or is shorter than a row.
    """
    if text == RANDOM:
        return None
    if not backbone and (text != SELF or not _speaks(model)):
        raise InputError(f"input_text: {text} needs the backbone's name, for its files; give random")
    if text == SELF:
        tokens = _own(encoder, model, (backbone, digest), seed, loading)
    else:
        tokens = _first_windows(text, encoder, backbone, loading)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        shared = [tokens]  # processors that round otherwise draw otherwise
        torch.distributed.broadcast_object_list(shared)
        (tokens,) = shared
    return tokens


def _first_windows(path: str, encoder: nn.Module, backbone: str, loading: backbones.Loading) -> Tensor:
    from lit_spectral.datamodules.text_windows import TextWindows

    source = backbones.fetch(backbone)
    longest = int(min(backbones.load_tokenizer(source, loading=loading).model_max_length, window(encoder, LENGTH)))
    try:
        data = TextWindows(path, limit=SEQUENCES, batch_size=SEQUENCES, max_length=longest, tokenizer=source)
        data.setup("validate")
    except InputError as error:
        said = str(error).removeprefix("data.path: ").removesuffix(", or a smaller --data.max_length")
        raise InputError(f"input_text: {said}") from None
    return torch.tensor(data.splits["val"]["input_ids"])


def _own(encoder: nn.Module, model: Any, known: tuple[str, str], seed: int, loading: backbones.Loading) -> Tensor:
    from lit_spectral.updates.beneath import beneath  # which stands on this

    if not Reading(encoder).causal:
        raise InputError(
            f"input_text: self is text that a decoder says, and {type(encoder).__name__} predicts no next tokens; give "
            "random, or a corpus"
        )
    if not _speaks(model):
        if model is not None and beneath(model) is not None:
            raise InputError("input_text: self is said by the backbone alone here, not on top of on_top_of; give "
                             "random, or a corpus")  # fmt: skip
        model = _with_head(*known, loading)
    shape = (SEQUENCES, window(encoder, LENGTH))
    weight = next(model.parameters())
    if is_sharded(weight):  # all processes compute it together, and none may wait for another
        return _said(model, shape, seed)
    recipe = repr((parameters_digest(model.parameters()), shape, seed, weight.dtype, weight.device.type))
    file = cache_folder("texts") / f"{tensor_files.content_digest(recipe)}.safetensors"
    return tensor_files.kept(file, lambda: {"tokens": _said(model, shape, seed)}, "input_text: what self says")[
        "tokens"
    ]


def _speaks(model: Any) -> bool:
    """Whether a model of transformers has a head that predicts tokens."""
    return getattr(model, "can_generate", lambda: False)() is True


def _with_head(backbone: str, digest: str, loading: backbones.Loading) -> Any:
    """The backbone with its own head; InputError where its files have none, or it is of other weights."""
    from transformers import AutoModelForCausalLM

    source = backbones.fetch(backbone)
    plain = replace(loading, dtype="auto", quantization=None)
    model, missing = backbones.load_model(AutoModelForCausalLM, source, plain)
    if missing:
        raise InputError(f"input_text: the files of {source} hold no language-model head, so that self says nothing; "
                         "give random, or a corpus")  # fmt: skip
    base: Any = model.base_model
    if digest and not same_backbone(digest, backbone_digest(base, ())):
        raise InputError(f"input_text: self would be said by other weights of {source} than are adapted; give random, "
                         "or a corpus")  # fmt: skip
    return model


def _said(model: Any, shape: tuple[int, int], seed: int) -> Tensor:
    """What a decoder says, (rows, length): each token drawn from its whole distribution, text after text."""
    named = [getattr(model.config.get_text_config(), f"{name}_token_id", None) for name in ("bos", "eos")]
    starts = [start for each in named for start in (each if isinstance(each, list) else [each]) if start is not None]
    if not starts:
        raise InputError("input_text: the backbone's config names no token that begins a text, for self; give random, "
                         "or a corpus")  # fmt: skip
    device = model.get_input_embeddings().weight.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(model):
        torch.manual_seed(seed)
        return draw(model, starts[0], shape).cpu()
