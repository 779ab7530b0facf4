"""The Update of an adapter of peft's: of plain LoRA by its files, of other types through peft."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_spectral import backbones
from lit_spectral.adapters.foreign import is_peft_layer
from lit_spectral.errors import InputError
from lit_spectral.updates.delta import Delta, Pair
from lit_spectral.updates.model_folder import described, skeleton
from lit_spectral.updates.of_model import of_model
from lit_spectral.updates.update import Update
from lit_spectral.updates.weights import ties_of

__all__ = ["CONFIG", "of_peft"]

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# How peft writes the path of a module.
PREFIX = "base_model.model."


def of_peft(folder: Path, backbone: str | None) -> Update:
    """The Update of a folder that peft's `save_pretrained` wrote, or `lit-spectral export`.

    Args:
        folder: has `adapter_config.json`.
        backbone: where the backbone lies, if not where the config says. Plain LoRA is read without it.

    Raises:
        InputError: a pickle, a damaged file, prompts, or changes of something else than linear maps.
    """
    settings = _json(folder / CONFIG)
    kind, base = settings.get("peft_type"), backbone or settings.get("base_model_name_or_path") or ""
    if not (folder / ADAPTER).is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        raise InputError(
            f"{folder}: "
            + (
                "adapter_model.bin is a pickle, which could run code; save it as safetensors by peft first"
                if pickle
                else f"there is no {ADAPTER}; give a folder that peft's save_pretrained wrote"
            )
        )
    tensors, noted = _tensors(folder / ADAPTER)
    origin = noted["origin"] if isinstance(noted.get("origin"), dict) else {}
    about: dict[str, Any] = {"source": str(folder), "method": {"name": f"peft {kind}"}}
    plain = kind == "LORA" and not settings.get("use_dora") and not settings.get("lora_bias")
    if not plain or any("lora_embedding" in name for name in tensors):
        found = _through_peft(folder, settings, base, tensors)
    else:
        changes, whole = _lora(folder, tensors, settings)
        found = Update(changes, whole, base, "", {} if "architecture" in origin else _class_of(settings, base))
    found = replace(found, origin={**found.origin, **about, **origin})
    if not settings.get("ensure_weight_tying"):
        _check_ties(folder, found)
    digest = noted.get("digest")
    return replace(found, digest=digest if isinstance(digest, str) else "")


def _class_of(settings: Mapping[str, Any], base: str) -> dict[str, Any]:
    """The class of the model that an adapter of peft's goes on; nothing if unknown."""
    import transformers

    mappings: dict[Any, Any] = {
        "CAUSAL_LM": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        "SEQ_2_SEQ_LM": transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        "SEQ_CLS": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "TOKEN_CLS": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        "QUESTION_ANS": transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
        "FEATURE_EXTRACTION": transformers.MODEL_MAPPING,
    }
    # What peft notes where it isn't told the task.
    noted = (settings.get("auto_mapping") or {}).get("base_model_class")
    if isinstance(noted, str):
        return {"architecture": noted}
    mapping = mappings.get(settings.get("task_type"))
    if mapping is None or not base:
        return {}
    try:
        kind = mapping[type(transformers.AutoConfig.from_pretrained(backbones.fetch(base)))]
    except Exception:  # no such backbone here: whoever needs it says so
        return {}
    return {"architecture": kind.__name__}


def _lora(
    folder: Path, tensors: dict[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, Delta], dict[str, Tensor]]:
    """Changes and whole tensors of a LoRA adapter, scales baked in."""
    lefts, rights, whole = {}, {}, {}
    for name, tensor in tensors.items():
        path = name.removeprefix(PREFIX)
        if path.endswith(".lora_A.weight"):
            rights[path.removesuffix(".lora_A.weight")] = tensor.float()
        elif path.endswith(".lora_B.weight"):
            lefts[path.removesuffix(".lora_B.weight")] = tensor.float()
        elif ".lora_" in path:
            raise InputError(f"{folder}: {name} is nothing that a LoRA adapter has; merge it with peft, and give that")
        elif ".modules_to_save." not in path and ".original_module." not in path:  # twice among biases
            whole[path.replace(".base_layer.", ".")] = tensor.float()
    ranks: dict[str, int] = settings.get("rank_pattern") or {}
    alphas: dict[str, float] = settings.get("alpha_pattern") or {}
    changes = {}
    for path, right in rights.items():
        if path not in lefts:
            raise InputError(f"{folder}: {path} has lora_A and no lora_B; give a whole adapter")
        rank = _by_pattern(ranks, path, settings.get("r"))
        alpha = _by_pattern(alphas, path, settings.get("lora_alpha"))
        left = lefts[path]
        if right.ndim != 2 or left.ndim != 2 or left.shape[1] != len(right) or rank != len(right) or alpha is None:
            raise InputError(
                f"{folder}: {path} has factors {tuple(left.shape)} and {tuple(right.shape)} for a rank of {rank}; give "
                "an adapter whose files belong together"
            )
        scale = alpha / (math.sqrt(len(right)) if settings.get("use_rslora") else len(right))
        changes[path] = Delta(Pair(left * scale, right))
    return changes, whole


def _by_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """As peft does: the value of the first regular expression that fits the path, or what follows a dot of it."""
    try:
        return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", path)), default)
    except re.error as error:
        raise InputError(
            f"{CONFIG}: a pattern in it is no regular expression ({error}); give a whole adapter"
        ) from error


def _check_ties(folder: Path, found: Update) -> None:
    """InputError where peft has taken apart what the backbone ties: an embedding trained whole, its output not."""
    if not found.whole or not found.backbone:
        return
    try:
        source = Path(backbones.fetch(found.backbone))
        _, outline = skeleton(source, str(found.origin.get("architecture") or ""), None)
    except InputError:  # no such backbone here: whoever needs it says so
        return
    ties = ties_of(outline)
    for name in found.whole:
        left = next((other for other in ties.get(name, ()) if other not in found.whole), None)
        if left is not None:
            raise InputError(
                f"{folder}: {name} was trained, and {left} not, which are one tensor in {found.backbone}; merge it "
                "with peft, and give that"
            )


def _through_peft(folder: Path, settings: Mapping[str, Any], base: str, tensors: Mapping[str, Tensor]) -> Update:
    """What peft's own layers make of it, dense; InputError where a type has no ΔW, or also one of something else."""
    import peft

    kind = settings.get("peft_type")
    if not base:
        raise InputError(f"{folder}: it does not say which backbone it is of; give --backbone FOLDER")
    source = backbones.fetch(base)
    named = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    config, kind_of_model = described(Update({}, named, base, "", _class_of(settings, base)), source)
    model, _ = backbones.load_model(kind_of_model, source, config=config)
    plain = model.state_dict().keys()
    try:
        wrapped: Any = peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # whatever peft refuses
        raise InputError(f"{folder}: peft can't put it on {base}: {str(error).splitlines()[0][:200]}") from error
    if wrapped.active_peft_config.is_prompt_learning:
        raise InputError(f"{folder}: {kind} has no ΔW, but prompts; give an adapter that changes weights")
    inner = wrapped.get_base_model().eval()
    inner.requires_grad_(False)
    found = of_model(inner, base)
    if not found.changes:
        raise InputError(f"{folder}: {kind} changes no linear map; give an adapter that does")
    layers = [path for path, each in inner.named_modules() if is_peft_layer(each)]
    other = next((path for path in layers if path not in found.changes), None)
    if other is not None:
        raise InputError(f"{folder}: it changes {other} too, which is no linear map; merge it with peft, and give that")
    named = {name.replace(".base_layer.", "."): tensor for name, tensor in named.items()}
    whole = {name: tensor.float() for name, tensor in named.items() if name in plain}
    return replace(found, whole=whole | dict(found.whole))


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: it can't be read ({str(error)[:100]}); give a whole adapter") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: it holds no settings; give a whole adapter")
    return found


def _tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a file, and what this package has noted in it."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            noted = json.loads((opened.metadata() or {}).get("lit_spectral", "{}"))
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{file}: it is damaged ({str(error)[:100]}); give a whole one") from error
    return tensors, noted if isinstance(noted, dict) else {}
