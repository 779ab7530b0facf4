"""A LoRA adapter in peft's form, with every scale inside its factors, so that whoever loads it multiplies by 1."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_spectral.adapters.linear import is_transposed
from lit_spectral.backbones import BUILT_IN
from lit_spectral.errors import InputError
from lit_spectral.updates.delta import Pair
from lit_spectral.updates.update import Update
from lit_spectral.updates.weights import Weights

__all__ = ["CONSUMERS", "thin_pairs", "write_peft"]

# vLLM's values of --max-lora-rank, which its kernels are made for.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
CONSUMERS = ("vllm", "llama.cpp")
# From the end of an architecture's name to peft's task, and the heads that peft then takes to be in the file.
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ForCausalLM": ("CAUSAL_LM", ()),
    "LMHeadModel": ("CAUSAL_LM", ()),
    "ForSequenceClassification": ("SEQ_CLS", ("classifier", "score")),
    "ForTokenClassification": ("TOKEN_CLS", ("classifier", "score")),
    "ForQuestionAnswering": ("QUESTION_ANS", ("qa_outputs",)),
}


def write_peft(update: Update, folder: Path, weights: Weights, consumer: str | None = None) -> None:
    """Write `adapter_model.safetensors` (float32) and `adapter_config.json`.

    What was trained whole is in `modules_to_save`, whole modules at a time, filled up from the backbone's files;
    the bias of an adapted map is the difference to the backbone's, in the bias of B.

    Raises:
        InputError: changes that are no thin factors, or something that peft or the consumer has no place for.
    """
    pairs = thin_pairs(update)
    if consumer is not None:
        pairs = _of_one_rank(pairs, consumer)
    biases = {path: update.whole[f"{path}.bias"] for path in pairs if f"{path}.bias" in update.whole}
    adapted = {f"{path}.bias" for path in biases}
    modules = _modules({name for name in update.whole if name not in adapted}, pairs, weights)
    _check_consumer(consumer, modules, adapted, any(is_transposed(weights.maps[weights.path(path)]) for path in pairs))
    saved = _saved_modules(modules, weights)
    tensors = _whole(update, saved, weights)
    _check_apart(pairs, saved)
    for path, pair in pairs.items():
        tensors[f"{path}.lora_A.weight"] = pair.right
        tensors[f"{path}.lora_B.weight"] = pair.left
        if biases:
            tensors[f"{path}.lora_B.bias"] = _bias_change(path, biases.get(path), weights)
    about = {"backbone": update.backbone, "digest": update.digest, "origin": dict(update.origin)}
    save_file(
        {f"base_model.model.{name}": tensor.float().contiguous().clone() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt", "lit_spectral": json.dumps(about, default=str)},
    )
    settings = _settings(update, pairs, modules, saved, weights) | {"lora_bias": bool(biases)}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def thin_pairs(update: Update) -> dict[str, Pair]:
    """The factors of every change by path; InputError where there is none, or one is no product of thin factors."""
    if not update.changes:
        raise InputError("export: nothing but whole tensors was trained, which is no LoRA; give --to merged")
    pairs = {}
    for path, delta in update.changes.items():
        if not delta.is_thin or delta.factors is None:
            raise InputError(
                f"export: the change of {path} is no product of thin factors, which is all that LoRA holds; "
                "give --to merged, or --rank or --energy for the nearest one"
            )
        pairs[path] = delta.factors
    return pairs


def _of_one_rank(pairs: dict[str, Pair], consumer: str) -> dict[str, Pair]:
    """All with the rank of the largest, by zeros; for vLLM the next one that it takes."""
    largest = max(len(pair.right) for pair in pairs.values())
    allowed = VLLM_RANKS if consumer == "vllm" else (largest,)
    rank = next((each for each in allowed if each >= largest), None)
    if rank is None:
        raise InputError(f"export: --for vllm takes ranks up to {allowed[-1]}, not {largest}; give --rank")
    return {path: pair.padded(rank) for path, pair in pairs.items()}


def _modules(names: set[str], pairs: dict[str, Pair], weights: Weights) -> list[str]:
    """The modules that own these tensors, a head as a whole, none of them inside another."""
    model = weights.skeleton
    adapted = {path.partition(".")[0] for path in pairs}
    owners = set()
    for name in [each for given in names for each in weights.tied(given)]:
        top = name.partition(".")[0]
        is_head = model.base_model is not model and top != model.base_model_prefix and top not in adapted
        owners.add(top if is_head else name.rpartition(".")[0])
    return sorted(each for each in owners if not any(each.startswith(f"{other}.") for other in owners))


def _check_consumer(consumer: str | None, modules: list[str], biases: set[str], transposed: bool) -> None:
    if consumer is None:
        return
    allowed = {"score", "classifier"} if consumer == "vllm" else set()
    refused = [*(each for each in modules if each not in allowed), *sorted(biases)]
    if refused:
        but = " but score and classifier" if allowed else ""
        raise InputError(f"export: --for {consumer} takes no whole tensors{but}, as {refused[0]} is; give --to merged")
    if transposed:
        raise InputError(f"export: --for {consumer} takes no adapters of Conv1D, as in GPT-2; give --to merged")


def _saved_modules(modules: list[str], weights: Weights) -> list[str]:
    """All modules that peft takes for one of these: it compares the ends of names."""
    return [path for path, _ in weights.skeleton.named_modules() if path and path.endswith(tuple(modules))]


def _whole(update: Update, saved: list[str], weights: Weights) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in saved:
        for inner in weights.skeleton.get_submodule(path).state_dict():
            name = f"{path}.{inner}"
            trained = next((update.whole[each] for each in (name, *weights.tied(name)) if each in update.whole), None)
            value = weights.tensor(name) if trained is None else trained
            if value is None:
                raise InputError(f"export: neither the adapter nor the backbone has {name}; give --to merged")
            tensors[name] = value
    return tensors


def _check_apart(pairs: dict[str, Pair], saved: list[str]) -> None:
    for path in pairs:
        inside = next((each for each in saved if f"{path}.".startswith(f"{each}.")), None)
        if inside is not None:
            raise InputError(
                f"export: {path} has a change of low rank, and {inside} was trained whole, which peft can't hold "
                "both; give --to merged"
            )


def _bias_change(path: str, bias: Tensor | None, weights: Weights) -> Tensor:
    known = weights.path(path)
    before = weights.tensor(f"{known}.bias")
    if before is None:
        raise InputError(f"export: biases were trained, and {path} has none, which peft can't hold; give --to merged")
    return torch.zeros_like(before) if bias is None else bias.float() - before.float()


def _settings(
    update: Update, pairs: dict[str, Pair], modules: list[str], saved: list[str], weights: Weights
) -> dict[str, Any]:
    ranks = {path: len(pair.right) for path, pair in pairs.items()}
    most = Counter(ranks.values()).most_common(1)[0][0]
    others = {path: rank for path, rank in ranks.items() if rank != most}
    # By hand: peft itself takes seconds to import. What it has besides is at its default.
    return {
        "peft_type": "LORA",
        "task_type": _task(saved, weights),
        "base_model_name_or_path": str(weights.folder) if update.backbone in {"", BUILT_IN} else update.backbone,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(pairs),
        "modules_to_save": modules or None,
        "fan_in_fan_out": any(is_transposed(weights.maps[weights.path(path)]) for path in pairs),
        "bias": "none",
        "init_lora_weights": True,  # anything else is another start, for some of which peft writes to the backbone
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def _task(saved: list[str], weights: Weights) -> str | None:
    """The task in peft's words, unless peft would then look for a head that wasn't trained."""
    name = type(weights.skeleton).__name__
    task, heads = next((TASKS[end] for end in TASKS if name.endswith(end)), (None, ()))
    looked_for = [path for path, _ in weights.skeleton.named_modules() if heads and path.endswith(heads)]
    return task if set(looked_for) <= set(saved) else None
