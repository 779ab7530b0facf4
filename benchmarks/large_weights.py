"""Llama folders of any shape with random weights, written shard by shard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["SHAPES", "Shape", "parse", "shards", "write"]


class Shape(NamedTuple):
    """What sets the sizes of a Llama's weights."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int

    def config(self) -> dict[str, Any]:
        """Its `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }


SHAPES = {
    "8b": Shape(4096, 14336, 32, 32, 8, 128256),
    "7b-width": Shape(4096, 11008, 8, 32, 32, 32000),
    "1b": Shape(2048, 8192, 16, 32, 8, 128256),
    "tiny": Shape(256, 640, 3, 4, 2, 128),
}


def parse(text: str) -> Shape:
    """A name in SHAPES, or six numbers with commas between them; ValueError for anything else."""
    if text in SHAPES:
        return SHAPES[text]
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if len(numbers) != len(Shape._fields) or min(numbers) < 1:
        raise ValueError(f"a shape is one of {', '.join(SHAPES)}, or {','.join(Shape._fields)} in numbers")
    return Shape(*numbers)


def write(folder: Path, shape: Shape) -> None:
    """Write the folder, bfloat16, a shard a layer; leave it alone where it holds that shape already.

    Gaussian weights of standard deviation 0.02, norms 1; the same at every call.
    """
    config, index = folder / "config.json", folder / "model.safetensors.index.json"
    if index.is_file() and json.loads(config.read_text()) == shape.config():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(shape.config(), indent=2))
    places: dict[str, str] = {}
    for number, sizes in enumerate(shards(shape)):
        generator = torch.Generator().manual_seed(number)
        name = f"model-{number + 1:05d}-of-{shape.layers + 2:05d}.safetensors"
        save_file({key: _drawn(size, generator) for key, size in sizes.items()}, folder / name, {"format": "pt"})
        places |= dict.fromkeys(sizes, name)
        print(f"wrote {name}", flush=True)
    # Last, for a folder without it to be written anew.
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _drawn(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    weight = torch.empty(size, dtype=torch.bfloat16)
    return weight.fill_(1) if len(size) == 1 else weight.normal_(0, 0.02, generator=generator)


def shards(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and sizes of the tensors of each shard."""
    hidden, wide, narrow = shape.hidden, shape.intermediate, shape.hidden // shape.heads * shape.key_value_heads
    yield {"model.embed_tokens.weight": (shape.vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(shape.layers):
        sizes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        yield {f"model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}
    yield {"lm_head.weight": (shape.vocabulary, hidden)}
