"""Whether a checkpoint belongs to a task as it is set up now."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lit_spectral.adapters import DenseAdapter, named_changes
from lit_spectral.adapters.linear import is_linear, is_quantised
from lit_spectral.errors import InputError
from lit_spectral.reading import place
from lit_spectral.sharding import whole
from lit_spectral.tasks.saved_weights import plain
from lit_spectral.tensor_files import content_digest

__all__ = ["backbone_digest", "check_attached", "check_checkpoint", "check_gradients", "parameters_digest"]

# In a digest, in place of weights that are codes.
QUANTISED = "quantised"


def check_attached(model: nn.Module, paths: list[str] | None) -> None:
    """InputError if a model's changes are not at these paths, where the method put them; None for a model of others."""
    if paths is not None and [plain(path) for path in named_changes(model)] != paths:
        raise InputError(
            "fit: the model's adapters are not those that its method put there, as after detach; build the task anew"
        )


def check_checkpoint(
    saved: dict[str, Any],
    found: dict[str, Tensor],
    ours: dict[str, Any],
    expected: dict[str, Tensor],
    acts_at_start: tuple[str, ...] = (),
) -> list[str]:
    """Compare what a checkpoint says of itself with the task it is to be loaded into.

    Args:
        saved: the checkpoint's `method`, `backbone_digest` and `init`.
        found: its weights.
        ours: the task's `method`, `backbone_digest` and `init`.
        expected: the task's trained weights.
        acts_at_start: settings of the method that would come too late.

    Returns:
        Which other settings differ, and what they are in both.

    Raises:
        InputError: another method, backbone or scale, keys and shapes that don't all match, or
            settings that can't act any more; the message names what differs.
    """
    theirs, mine = saved["method"], ours["method"]
    if theirs["name"] != mine["name"]:
        raise InputError(
            f"the checkpoint is of method {theirs['name']}, the model of {mine['name']}; "
            f"give --model.method {theirs['name']}"
        )
    if not _same_backbone(saved["backbone_digest"], ours["backbone_digest"]):
        raise InputError(
            f"the checkpoint was trained on backbone {saved['init']['backbone']}, whose weights differ from "
            f"those of {ours['init']['backbone']}; give --model.backbone with the one it was trained on"
        )
    changed = {key: f"{key}: {theirs.get(key)}, here {mine[key]}" for key in mine if theirs.get(key) != mine[key]}
    settings = ", ".join(changed.values())
    differences = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(n for n in expected.keys() & found.keys() if expected[n].shape != found[n].shape),
    }
    if any(differences.values()):
        listed = "; ".join(f"{what}: {_some(names)}" for what, names in differences.items() if names)
        raise InputError(f"the checkpoint does not fit the model ({settings or 'same settings'}); {listed}")
    defining = [changed[key] for key in ours["defines_change"] if key in changed]
    if defining:
        raise InputError(f"the checkpoint's change is made otherwise ({', '.join(defining)}); give its settings")
    late = [changed[key] for key in acts_at_start if key in changed]
    if late:
        raise InputError(
            f"settings that act at the start of training alone are not the checkpoint's ({', '.join(late)}); "
            "give its settings, or train anew, without --ckpt_path"
        )
    others = {key: value for key, value in ours["init"].items() if key != "backbone"}  # which is known by its digest
    arguments = [f"{k}: {saved['init'].get(k)}, here {v}" for k, v in others.items() if saved["init"].get(k) != v]
    return [*changed.values(), *arguments]


def check_gradients(model: Any) -> None:
    """After a backward pass: InputError naming the adapters that it did not reach, so that they can't learn."""
    reached: dict[str, bool] = {}
    for name, change in named_changes(model).items():
        trained = [p for p in model.get_submodule(name).parameters() if p.requires_grad]
        # Of full fine-tuning the part that is used learns; nothing was put where it isn't.
        if trained and not isinstance(change, DenseAdapter):
            reached[name] = any(p.grad is not None for p in trained)
    places = {place(name) for name, has_gradient in reached.items() if has_gradient}
    idle = [name for name in reached if place(name) not in places]
    drops_layers = any("layerdrop" in key and value for key, value in model.config.to_dict().items())
    if idle and not drops_layers:  # else another batch may reach them
        raise InputError(
            f"{len(idle)} adapters get no gradient, since the model computes its loss without them ({_some(idle)}); "
            "leave them out of --model.method.target_modules"
        )


def backbone_digest(encoder: nn.Module, new: Container[int]) -> str:
    """Two hashes that tell backbones apart: of what is no weight of a linear map, and of those weights.

    Where they are quantised that word stands for the second: their values depend on how.

    Args:
        encoder: the pretrained part of a model, before it is adapted.
        new: ids of parameters that its files lack.
    """
    maps = [module for module in encoder.modules() if is_linear(module)]
    weights = {id(module.weight): module.weight for module in maps if id(module.weight) not in new}
    others = [p for p in encoder.parameters() if id(p) not in weights and id(p) not in new]
    coded = any(is_quantised(module) for module in maps)
    return f"{parameters_digest(others)}-{QUANTISED if coded else parameters_digest(weights.values())}"


def parameters_digest(parameters: Iterable[Any]) -> str:
    """A hash of all shapes, and of about 256 entries of every tensor, as bfloat16 has them."""
    pretrained = list(parameters)
    shapes = torch.tensor([size for p in pretrained for size in p.shape])
    # Copies: a view would keep all of a tensor that was put together of shards.
    steps = (max(1, p.numel() // 256) for p in pretrained)
    entries = [
        whole(p.detach()).flatten()[::step].to(torch.bfloat16, copy=True)
        for p, step in zip(pretrained, steps, strict=True)
    ]
    return content_digest(shapes, *entries)


def _same_backbone(saved: str, ours: str) -> bool:
    (others, maps), (our_others, our_maps) = saved.split("-", 1), ours.split("-", 1)
    return others == our_others and (maps == our_maps or QUANTISED in {maps, our_maps})


def _some(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
