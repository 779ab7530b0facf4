"""A Hugging Face model with the changes in its weights, written file by file, one file in memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_spectral.adapters.linear import is_transposed
from lit_spectral.backbones import load_tokenizer
from lit_spectral.errors import InputError
from lit_spectral.spectra.linalg import all_finite
from lit_spectral.updates.delta import Delta
from lit_spectral.updates.model_folder import INDEX
from lit_spectral.updates.update import Update
from lit_spectral.updates.weights import Weights

__all__ = ["write_merged"]

# Of what lies beside a model: tokenizers, chat templates, how to generate.
BESIDE = {".json", ".txt", ".model", ".jinja", ".tiktoken"}


def write_merged(update: Update, folder: Path, weights: Weights) -> None:
    """Every file of the backbone with W₀ + ΔW, summed in float32 and rounded once to the file's own dtype.

    What the files lack, as a new head, goes into the last of them. What is tied and has a change of its own is
    untied. Of a model with another head than the backbone's, the backbone's head is left out.

    Raises:
        InputError: a sum that the file's dtype can't hold.
    """
    changes = {f"{weights.path(path)}.weight": delta for path, delta in update.changes.items()}
    whole = {each: tensor for name, tensor in update.whole.items() for each in weights.tied(name)}
    untied = {each for name in changes for each in weights.tied(name) if len(weights.tied(name)) > 1}
    added = [name for name in sorted({*changes, *update.whole, *untied}) if not weights.lies(name)]
    own = (getattr(weights.config, "architectures", None) or [""])[0]
    anew = type(weights.skeleton).__name__ != own
    index: dict[str, str] = {}
    size, last = 0, list(weights.files)[-1]
    for file, keys in weights.files.items():
        tensors = {}
        for key in keys:
            name = weights.name(key)
            if name is not None:
                tensors[name if anew else key] = _value(
                    name, weights.read(file, key), changes.get(name), whole.get(name), weights
                )
            elif not anew:
                tensors[key] = weights.read(file, key)
        for name in added if file == last else ():
            tensors[name] = _value(name, weights.tensor(name), changes.get(name), whole.get(name), weights)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index |= dict.fromkeys(tensors, file)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(weights.files) > 1:
        listed = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
        (folder / INDEX).write_text(json.dumps(listed, indent=2), encoding="utf-8")
    _write_beside(folder, weights, anew, bool(untied))


def _value(name: str, before: Tensor | None, delta: Delta | None, trained: Tensor | None, weights: Weights) -> Tensor:
    """What the merged model has under a name."""
    dtype = before.dtype if before is not None else _dtype(weights)
    if trained is not None:
        value = trained.to(dtype)
    else:
        assert before is not None
        value = before
        if delta is not None:
            weights.check_map(name, before)
            exact = torch.promote_types(dtype, torch.float32)
            transposed = is_transposed(weights.maps[name.removesuffix(".weight")])
            weight = before.mT if transposed else before
            total = delta.dense(weight, exact).add_(weight)
            value = (total.mT if transposed else total).to(dtype)
    if (delta is not None or trained is not None) and not all_finite(value):
        raise InputError(f"export: {name} with its change is beyond what {dtype} holds; give a backbone in float32")
    return value.contiguous()


def _dtype(weights: Weights) -> torch.dtype:
    """Of a tensor that the files lack: what the config says that theirs is."""
    named = getattr(weights.config, "dtype", None)
    return named if isinstance(named, torch.dtype) else torch.float32


def _write_beside(folder: Path, weights: Weights, anew: bool, untied: bool) -> None:
    """The config of the merged model, and copies of what else lies beside the backbone's weights."""
    for file in weights.folder.iterdir():
        if file.is_file() and file.suffix in BESIDE and file.name not in {"config.json", INDEX}:
            shutil.copyfile(file, folder / file.name)
    config: dict[str, Any] = json.loads((weights.folder / "config.json").read_text(encoding="utf-8"))
    name = type(weights.skeleton).__name__
    if anew or "id2label" in config or weights.config.num_labels != 2:  # a config that doesn't say has two
        labels: dict[int, str] = weights.config.id2label
        config |= {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}
    config["architectures"] = [name]
    if untied:
        config["tie_word_embeddings"] = False
    unpadded = config.get("pad_token_id") is None and (weights.folder / "tokenizer_config.json").is_file()
    if anew and unpadded and name.endswith("ForSequenceClassification"):
        # By it a decoder with such a head finds the last token of a row; its tokenizer must pad by the same.
        tokenizer = load_tokenizer(str(weights.folder))
        tokenizer.save_pretrained(folder)
        config["pad_token_id"] = tokenizer.pad_token_id
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
