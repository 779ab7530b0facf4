"""Whether a checkpoint belongs to a task as it is set up now."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lit_spectral.adapters import DenseAdapter, named_wrappers
from lit_spectral.backbone_digest import same_backbone
from lit_spectral.errors import InputError
from lit_spectral.reading import place
from lit_spectral.tasks.saved_weights import plain

__all__ = ["check_attached", "check_checkpoint", "check_gradients"]


def check_attached(model: nn.Module, paths: list[str] | None) -> None:
    """InputError if a model's adapters aren't at these paths, where the method put them; None for a model of others."""
    if paths is not None and [plain(path) for path in named_wrappers(model)] != paths:
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
    if not same_backbone(saved["backbone_digest"], ours["backbone_digest"]):
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
    for name, wrapper in named_wrappers(model).items():
        trained = [p for p in wrapper.parameters() if p.requires_grad]
        # Of full fine-tuning the part that is used learns; nothing was put where it isn't.
        if trained and not isinstance(wrapper, DenseAdapter):
            reached[name] = any(p.grad is not None for p in trained)
    places = {place(name) for name, has_gradient in reached.items() if has_gradient}
    idle = [name for name in reached if place(name) not in places]
    drops_layers = any("layerdrop" in key and value for key, value in model.config.to_dict().items())
    if idle and not drops_layers:  # else another batch may reach them
        raise InputError(
            f"{len(idle)} adapters get no gradient, since the model computes its loss without them ({_some(idle)}); "
            "leave them out of --model.method.target_modules"
        )


def _some(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
