"""Finding and loading backbones: a hub id, a local folder, or the built-in `tiny`."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_spectral import tiny
from lit_spectral.errors import InputError, nearest, reason_of
from lit_spectral.quantization import check_quantization, compute_with_values, quantization_config
from lit_spectral.spectra.linalg import all_finite

__all__ = ["AS_IT_COMES", "BUILT_IN", "Loading", "fetch", "load_model", "load_tokenizer", "tell_padding"]

BUILT_IN = "tiny"
DTYPES = ("float32", "bfloat16", "float16", "auto")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Loading:
    """How a backbone's files are read.

    Args:
        dtype: float32, bfloat16, float16, or `auto`, the files' own. What is trained beside it stays in float32.
        attn_implementation: `eager`, `sdpa`, `flash_attention_2`, …, as transformers has them; None for its choice.
        revision: a branch, tag or commit of a hub id; None for its main branch.
        trust_remote_code: run code that lies beside the model; off, it is refused.
        quantization: `nf4` or `int8`, by which the encoder's linear maps lie in codes of 4 or 8 bits; None for the
            files' floats. What lies outside of the encoder, and poolers, stay in `dtype`.
        weights: whether weights are read at all. If not, the config says what model it is, and NaN stands for each
            weight, in no memory: what is made of one can't pass for a number.

    Raises:
        InputError: another dtype or quantization, or one without bitsandbytes.
    """

    dtype: str = "float32"
    attn_implementation: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    quantization: str | None = None
    weights: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype: there is no {self.dtype!r}{nearest(str(self.dtype), DTYPES)}")
        check_quantization(self.quantization)

    def of_files(self) -> dict[str, Any]:
        """What `from_pretrained` of a tokenizer or config takes of it."""
        return {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code}

    def of_model(self) -> dict[str, Any]:
        """What `from_pretrained` of a model takes."""
        own = {} if self.attn_implementation is None else {"attn_implementation": self.attn_implementation}
        dtype = "auto" if self.dtype == "auto" else getattr(torch, self.dtype)
        return {**self.of_files(), **own, "dtype": dtype}


AS_IT_COMES = Loading()


def fetch(backbone: str, setting: str = "backbone") -> str:
    """What to give to `from_pretrained`: a folder, or a hub id; `tiny` is pretrained first if need be.

    Args:
        backbone: a hub id, a folder, or `tiny`.
        setting: which the user gave it as.

    Raises:
        InputError: a path that is not a folder with a `config.json`.
    """
    if backbone == BUILT_IN:
        return str(tiny.fetch())
    folder = Path(backbone).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{setting}: {backbone!r} has no config.json; give a folder written by save_pretrained")
        return str(folder)
    if backbone.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(backbone):
        raise InputError(f"{setting}: there is no folder {backbone}; give a folder in Hugging Face format, or a hub id")
    return backbone


def load_model(
    auto_class: Any, source: str, loading: Loading = AS_IT_COMES, **kwargs: Any
) -> tuple[nn.Module, list[str]]:
    """`auto_class.from_pretrained`, and the names of weights that the files lacked.

    A head of another shape than the files' (another number of classes) counts as lacking.

    Args:
        auto_class: of transformers.
        source: of `fetch`.
        loading: how the files are read.
        kwargs: of `from_pretrained`.

    Raises:
        InputError: the files can't be had or read, the hub can't be reached, or the weights are
            not those of the encoder that `config.json` describes.
    """
    from transformers.utils import logging as hf_logging

    if not loading.weights:
        return _outline(auto_class, source, loading, **kwargs), []
    verbosity = hf_logging.get_verbosity()
    # Its report lists the new head as missing; the task trains what is missing, so this is no news.
    hf_logging.set_verbosity(logging.ERROR)
    try:
        if loading.quantization is not None:
            kind = loading.quantization
            kwargs["quantization_config"] = quantization_config(kind, auto_class, source, **loading.of_files())
        model, info = auto_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **loading.of_model(), **kwargs
        )
    except InputError:
        raise
    except Exception as error:  # files that aren't there, are damaged, or hold something else, can make it do anything
        raise _unavailable(source, error) from error
    finally:
        hf_logging.set_verbosity(verbosity)
    compute_with_values(model)
    damaged = next((name for name, weight in model.named_parameters() if not all_finite(weight)), None)
    if damaged is not None:
        raise InputError(f"backbone: {damaged} in the files of {source} is not finite; give undamaged ones")
    lacking = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    # Only a pooler may be missing from an encoder: checkpoints of masked-language models have none.
    inside = f"{model.base_model_prefix}."
    odd = [name for name in lacking if name.startswith(inside) and "pooler" not in name]
    if odd:
        raise InputError(
            f"backbone: the files of {source} lack {len(odd)} weights of a {model.config.model_type} encoder "
            f"({odd[0]}, …) or hold them in another shape; its config.json belongs to other weights"
        )
    return model, lacking


def _outline(auto_class: Any, source: str, loading: Loading, **kwargs: Any) -> nn.Module:
    """The model that the config describes, with NaN for weights; its buffers are on the meta device."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, **loading.of_files(), **kwargs)
        with torch.device("meta"):
            model: nn.Module = auto_class.from_config(config, trust_remote_code=loading.trust_remote_code)
    except Exception as error:  # as of `load_model`
        raise _unavailable(source, error) from error
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            stand_in = torch.tensor(torch.nan, device="cpu").expand(parameter.shape)
            module.register_parameter(name, nn.Parameter(stand_in, requires_grad=False))
    return model


def load_tokenizer(source: str, setting: str = "backbone", loading: Loading = AS_IT_COMES) -> Any:
    """A tokenizer with a padding token; InputError, by the setting that named it, when it can't be had."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **loading.of_files())
        alone = tokenizer.pad_token is None
        config = AutoConfig.from_pretrained(source, **loading.of_files()).get_text_config() if alone else None
    except Exception as error:
        raise _unavailable(source, error, setting) from error
    if config is not None:
        # Decoders come without one. Padding is masked, so that any token will do where the model names none.
        named = getattr(config, "pad_token_id", None)
        if isinstance(named, int) and 0 <= named < len(tokenizer):
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(named)
        else:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if not isinstance(tokenizer.model_max_length, (int, float)) or tokenizer.model_max_length < 1:
        raise InputError(
            f"{setting}: model_max_length in tokenizer_config.json of {source} is {tokenizer.model_max_length!r}; "
            "write the tokens that the model takes"
        )
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"{setting}: the tokenizer of {source} has no token to pad with (pad, eos or unk); give it a pad token"
        )
    return tokenizer


def check_reads_text(tokenizer: Any, source: str, setting: str = "backbone") -> None:
    """InputError for a tokenizer made without its files, to which every text is empty."""
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        raise InputError(
            f"{setting}: the tokenizer of {source} knows no token of a text, since its files are missing there; copy "
            "them beside the model (tokenizer.json, or what its class reads)"
        )


def tell_padding(model: Any, tokenizer: Any) -> None:
    """Have a model's config name the token that rows are padded with, by which some heads find a row's last token."""
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def _unavailable(source: str, error: Exception, setting: str = "backbone") -> InputError:
    reason = reason_of(error)
    if "trust_remote_code" in str(error):
        return InputError(
            f"{setting}: {source} brings code of its own, which is not run; read it, and give "
            "--model.trust_remote_code=true if you trust it"
        )
    if Path(source).is_dir():
        return InputError(
            f"{setting}: {source} can't be loaded ({reason}); is each of its files as save_pretrained wrote it?"
        )
    return InputError(
        f"{setting}: {source} is neither a local folder nor to be had from the hub now; "
        f"give --{'model.' * (setting == 'backbone')}{setting} FOLDER with a local copy ({reason})"
    )
