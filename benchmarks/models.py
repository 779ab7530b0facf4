"""The backbones that are measured: real shapes, random weights, random tokens."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SIZES", "batch", "build", "is_encoder"]

ENCODER = {"vocab_size": 30527, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
DECODER = {"attention_dropout": 0.0, "use_cache": False}

# Model type, config, rows and length of a batch. Dropout is off, for all contenders to do the same.
SHAPES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "tiny-encoder": (
        "mpnet",
        ENCODER | {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 64, "max_position_embeddings": 64},
        2,
        8,
    ),
    "tiny-decoder": (
        "llama",
        DECODER | {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 64, "tie_word_embeddings": True},
        2,
        8,
    ),
    "mpnet": ("mpnet", ENCODER, 8, 64),
    "smollm2": (
        "llama",
        DECODER | {"vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9}
        | {"num_key_value_heads": 3, "intermediate_size": 1536, "tie_word_embeddings": True},
        4,
        128,
    ),
    "7b-block": (
        "llama",
        DECODER | {"vocab_size": 512, "hidden_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 32}
        | {"intermediate_size": 11008},
        2,
        256,
    ),
    "7b-width": (
        "llama",
        DECODER | {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 32}
        | {"intermediate_size": 11008},
        4,
        1024,
    ),
}  # fmt: skip
# Blocks of Llama-2-7B, by one and by eight: the latter fill a GPU with work.
SIZES = {
    "tiny": ["tiny-encoder", "tiny-decoder"],
    "base": ["mpnet", "smollm2"],
    "7b-block": ["7b-block"],
    "7b-width": ["7b-width"],
}


def is_encoder(name: str) -> bool:
    """Whether every token sees all the others."""
    return SHAPES[name][0] != "llama"


def build(name: str, dtype: torch.dtype, device: torch.device, nf4: bool = False) -> nn.Module:
    """The frozen model with its head and its loss, in training mode; its maps in bitsandbytes' nf4 if asked for."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    kind, fields, *_ = SHAPES[name]
    config = AutoConfig.for_model(kind, **fields)
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM if kind == "llama" else AutoModelForSequenceClassification
    with device:
        model = auto.from_config(config, dtype=dtype)
    if nf4:
        codes = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = auto.from_pretrained(folder, dtype=dtype, device_map={"": device}, quantization_config=codes)
    model.requires_grad_(False).train()
    # As CausalLM scores: labels are shifted already, and cover the answer at the end alone.
    model.loss_function = lambda logits, labels, **_: F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())  # type: ignore[assignment]
    return model  # type: ignore[no-any-return]


def batch(name: str, device: torch.device) -> dict[str, Any]:
    """Tokens and labels; a decoder scores the last quarter of every row."""
    kind, fields, rows, length = SHAPES[name]
    generator = torch.Generator().manual_seed(1)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(2, high, shape, generator=generator).to(device)

    tokens = {"input_ids": draw(fields["vocab_size"], rows, length)}
    if kind == "llama":
        keep = length // 4
        return tokens | {"labels": draw(fields["vocab_size"], rows, keep), "logits_to_keep": keep}
    return tokens | {"labels": draw(4, rows) % 2}
