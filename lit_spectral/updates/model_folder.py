"""A folder in Hugging Face format: where it lies, its safetensors, and the model that its config describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lit_spectral.backbones import fetch
from lit_spectral.errors import InputError, reason_of
from lit_spectral.updates.update import Update

__all__ = ["INDEX", "described", "model_folder", "skeleton", "weight_files"]

INDEX = "model.safetensors.index.json"


def model_folder(backbone: str) -> Path:
    """Where the files of a backbone lie: a folder, `tiny`, or a hub id that has been downloaded; or InputError."""
    source = fetch(backbone)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except Exception as error:  # an id that can't be one, or nothing there
        raise InputError(
            f"backbone: {source} is neither a local folder nor downloaded; give --backbone FOLDER with a local copy"
        ) from error


def weight_files(folder: Path) -> list[str]:
    """The names of a folder's safetensors, in order; InputError if there are none, pickles for one."""
    index = folder / INDEX
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"backbone: {index} is no index of safetensors; give undamaged files") from error
        # A merged model has files of the same names, which are to lie in its folder.
        outside = next((file for file in files if Path(file).name != file), None)
        if outside is not None:
            raise InputError(f"backbone: {index} names {outside}, which is not in its folder; give undamaged files")
        return files
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    if any(folder.glob("*.bin")):
        raise InputError(
            f"backbone: {folder} holds pickles (.bin), which can run code and are not read; "
            "write it anew by save_pretrained, as safetensors"
        )
    raise InputError(f"backbone: {folder} has no model.safetensors; give a folder written by save_pretrained")


def skeleton(folder: Path, architecture: str, labels: Mapping[Any, str] | None) -> tuple[Any, Any]:
    """The config, with `labels`, and the model on the meta device; of the config's class if none is named.

    Raises:
        InputError: a config that transformers makes no model of.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        if labels:
            config.id2label = {int(number): str(label) for number, label in labels.items()}
            config.label2id = {label: number for number, label in config.id2label.items()}
        named = architecture or (getattr(config, "architectures", None) or [""])[0]
        kind: Any = getattr(transformers, named, None) if named else transformers.AutoModel
        if kind is None:
            raise InputError(f"backbone: transformers has no {named}, which {folder} or the adapter is of")
        with torch.device("meta"):
            model = getattr(kind, "from_config", kind)(config)
    except InputError:
        raise
    except Exception as error:  # a config that is damaged, or of code beside it, can make it do anything
        raise InputError(
            f"backbone: transformers makes no model of {folder / 'config.json'} ({reason_of(error)}); "
            "give a folder written by save_pretrained"
        ) from error
    return config, model


def described(update: Update, files: str) -> tuple[Any, Any]:
    """The config of the model that an update is of, with as many classes as its head has, and its class.

    Args:
        update: its origin's `architecture` names the class; where it doesn't, it is the config's own.
        files: of the backbone, as `lit_spectral.backbones.fetch` gives them.

    Raises:
        InputError: as `skeleton`.
    """
    config, outline = skeleton(Path(files), str(update.origin.get("architecture") or ""), None)
    shapes = {name: tensor.shape for name, tensor in outline.state_dict().items()}
    config.num_labels = update.class_count(shapes, config.num_labels)
    return config, type(outline)
