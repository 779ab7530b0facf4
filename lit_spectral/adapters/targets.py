"""Finding the linear maps to adapt: by name, or those that a model's blocks read text with."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from lit_spectral.adapters.base import Wrapper
from lit_spectral.adapters.foreign import is_peft_layer
from lit_spectral.adapters.linear import is_linear, linear_shape, resembles_linear
from lit_spectral.errors import InputError
from lit_spectral.reading import Call, Reading, place

__all__ = ["find_block_ends", "find_targets", "left_out"]


def find_targets(
    model: nn.Module, target_modules: Sequence[str] | str | None, reading: Reading | None = None
) -> dict[str, nn.Module]:
    """The linear maps to adapt, by their path in the model, in the model's order.

    Args:
        model: a Hugging Face model, or any module.
        target_modules: as in peft, a list of path endings (`query` matches `….self.query`) or one
            regular expression for the whole path. None takes the linear maps inside the repeated blocks that
            the model reads text with, which leaves out embeddings, poolers, heads and towers for other inputs;
            of decoders whose blocks have gates, as Llama's, all but the gates and the maps that close attention:
            q, k, v, up and down, also where these lie in one matrix (HiRA §4, MiLoRA Table 8, FCLoRA Table 14).
        reading: of the model, where it is known already.

    Raises:
        InputError: nothing matches, a match is not a linear map or not used, or its weight is tied to another's.
    """
    modules = dict(model.named_modules())
    reading = reading or Reading(model)
    adapted = [name for name, module in modules.items() if isinstance(module, Wrapper) or is_peft_layer(module)]
    if target_modules is None:
        if adapted:
            raise InputError(f"{adapted[0]} has an adapter already; detach it first")
        found = _default_targets(modules, reading)
    elif isinstance(target_modules, str):
        try:
            found = {name: m for name, m in modules.items() if name and re.fullmatch(target_modules, name)}
        except re.error as error:
            raise InputError(f"target_modules: {target_modules!r} is no regular expression: {error}") from error
    else:
        endings = tuple(target_modules)
        found = {n: m for n, m in modules.items() if any(n == e or n.endswith("." + e) for e in endings)}
        for ending in endings:
            if not any(n == ending or n.endswith("." + ending) for n in found):
                raise InputError(_nothing_matches(ending, modules))
    if not found:
        raise InputError(_nothing_matches(target_modules, modules))
    for name in found:
        owner = next((path for path in adapted if name == path or name.startswith(f"{path}.")), None)
        if owner is not None:
            raise InputError(f"{owner} has an adapter already; detach it first")
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, module in found.items():
        if not is_linear(module):
            raise InputError(
                f"target_modules matches {name}, {_what_it_is(module)}; "
                f"linear maps here end in {_linear_endings(modules)}"
            )
        if owners[id(module.weight)] > 1:
            raise InputError(f"the weight of {name} is tied to another module's; leave it out of target_modules")
    unread = next((name for name in found if not reading.uses(name)), None)
    if unread is not None:
        raise InputError(f"{unread}: the model reads text without this map; leave it out of target_modules")
    return found


def find_block_ends(model: nn.Module, reading: Reading) -> tuple[list[str], list[str]]:
    """Paths of the linear maps that close the attention and the feed-forward parts of a model's repeated blocks.

    What such a map gives is added to the residual stream. It is the last that is called in its part, and gives as many
    features as the part's first reads. A part of attention is what lies below a module named so.

    Args:
        model: a Hugging Face model, or any module.
        reading: of the model.

    Returns:
        Those of attention, and the others; each in the order of their calls.
    """
    modules = dict(model.named_modules())
    blocks = {
        f"{name}.{child}"
        for name, module in modules.items()
        if isinstance(module, nn.ModuleList)
        for child, _ in module.named_children()
    }
    parts: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for name in dict.fromkeys(call.name for call in reading.calls or []):
        above = [name[: end.start()] for end in re.finditer(r"\.", name)]
        block = max((path for path in above if path in blocks), key=len, default=None)
        if block is None or not is_linear(modules[name]):
            continue
        attention = next((path for path in above if path.startswith(block) and _names_attention(path)), None)
        parts[attention or block, attention is not None].append(name)
    ends: tuple[list[str], list[str]] = [], []
    for (_, attends), members in parts.items():
        if linear_shape(modules[members[-1]])[0] == linear_shape(modules[members[0]])[1]:
            ends[0 if attends else 1].append(members[-1])
    return ends


def _names_attention(path: str) -> bool:
    # A number is of several, which the list has its name for.
    last = re.sub(r"\.\d+$", "", path).rpartition(".")[2].lower()
    return "attn" in last or "attention" in last


def left_out(model: nn.Module, targets: Collection[str], too_small: Collection[str], reading: Reading) -> str:
    """What a model's blocks hold beside their default targets, in one line; empty where that is nothing.

    Args:
        model: as in `find_targets`.
        targets: paths of what is adapted.
        too_small: paths of linear maps that the method does not fit into.
        reading: of the model.
    """
    blocks, reasons = _blocks(dict(model.named_modules())), defaultdict[str, list[str]](list)
    for name, module in model.named_modules():
        if not name.startswith(blocks) or name in targets or isinstance(module, nn.Embedding):
            continue
        ending = ".".join(part for part in name.split(".")[-2:] if not part.isdigit())
        matrices = {key: p for key, p in module.named_parameters(recurse=False) if p.ndim > 1}
        if not matrices:
            continue
        if name in too_small:
            reasons["too small for this rank"].append(ending)
        elif is_linear(module) and min(linear_shape(module)) == 1:
            reasons["gates of one row"].append(ending)
        elif not is_linear(module):
            kind = f"{ending} ({type(module).__name__}: {', '.join(matrices)})"
            reasons["no linear maps, which stay as they are"].append(kind)
        elif not reading.uses(name):
            reasons["not used when text is read"].append(ending)
        else:
            reasons["gates and what closes attention, as in the papers"].append(ending)
    parts = [f"{', '.join(dict.fromkeys(endings))} ({reason})" for reason, endings in reasons.items()]
    if not parts:
        return ""
    inside = sum(p.numel() for name, p in model.named_parameters() if name.startswith(blocks))
    adapted = sum(m.weight.numel() for name, m in model.named_modules() if name in targets)
    return f"{'; '.join(parts)}; the targets are {adapted / inside:.0%} of the blocks' weights"


def _default_targets(modules: dict[str, nn.Module], reading: Reading) -> dict[str, nn.Module]:
    blocks = _blocks(modules)
    inside = {
        name: module
        for name, module in modules.items()
        if name.startswith(blocks) and (reading.uses(name) or any(module.children()))
    }
    for name, module in inside.items():
        if resembles_linear(module):
            raise InputError(f"{name} is {_what_it_is(module)}; give the backbone with its plain weights")
    found = {name: module for name, module in inside.items() if is_linear(module) and min(linear_shape(module)) > 1}
    by_parent: dict[str, list[Call]] = defaultdict(list)
    for call in reading.calls or []:
        members = by_parent[call.name.rpartition(".")[0]]
        if call.name in found and all(call.name != earlier.name for earlier in members):
            members.append(call)
    gates, closing = set[str](), set[str]()
    for parent, members in by_parent.items():
        if not members:
            continue
        if _is_attention(parent, modules[parent]):
            closing |= _closing(members)
        else:
            gates |= _gate(members, modules)
    gated = bool(gates) or any(_has_fused_gate(members, modules) for members in by_parent.values())
    if reading.causal and (gated or _has_experts(inside)):
        left = {place(name) for name in gates | closing}
        return {name: module for name, module in found.items() if place(name) not in left}
    return found


def _blocks(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """How paths inside repeated blocks begin."""
    return tuple(f"{name}." for name, module in modules.items() if isinstance(module, nn.ModuleList)) or ("\0",)


def _is_attention(name: str, module: nn.Module) -> bool:
    return any(
        "attn" in text or "attention" in text for text in (name.rpartition(".")[2], type(module).__name__.lower())
    )


def _closing(members: list[Call]) -> set[str]:
    """Of an attention's maps, in the order of their calls, the last, if it is given another tensor than the first."""
    last = members[-1]
    return {last.name} if last.given is not members[0].given else set()


def _gate(members: list[Call], modules: Mapping[str, nn.Module]) -> set[str]:
    """The gate of a gated feed-forward part: two maps of one input and width, and a third back from it.

    Which of the two is the gate is told by its being called first, as act(gate(x)) ⊙ up(x) is written.
    """
    if len(members) != 3 or members[0].given is not members[1].given or members[2].given is members[0].given:
        return set()
    (gate, _), (up, _), (_, down) = (linear_shape(modules[member.name]) for member in members)
    return {members[0].name} if gate == up == down else set()


def _has_fused_gate(members: list[Call], modules: Mapping[str, nn.Module]) -> bool:
    """Whether a feed-forward part has gate and up in one matrix, of twice the width that its other map reads."""
    if len(members) != 2:
        return False
    (wide, _), (_, narrow) = (linear_shape(modules[member.name]) for member in members)
    parent = members[0].name.rpartition(".")[0]
    return wide == 2 * narrow and not _is_attention(parent, modules[parent])


def _has_experts(inside: Mapping[str, nn.Module]) -> bool:
    """Whether some of a model's weights are stacks of matrices, as experts' are."""
    return any(
        p.ndim == 3 and min(p.shape) > 1 and not isinstance(module, nn.Conv1d)
        for module in inside.values()
        for p in module.parameters(recurse=False)
    )


def _what_it_is(module: nn.Module) -> str:
    kind = type(module).__name__
    article = "an" if kind[0] in "AEIOU" else "a"
    if not resembles_linear(module):
        return f"{article} {kind}, which is not a linear map"
    stored = getattr(getattr(module, "weight", None), "dtype", None)
    dtype = f" with weights of {str(stored).removeprefix('torch.')}" if stored else ""
    return f"{article} {kind}{dtype}, which does not compute W x + b from floating-point W"


def _linear_endings(modules: Mapping[str, nn.Module]) -> str:
    endings = Counter(name.rsplit(".", 1)[-1] for name, module in modules.items() if is_linear(module))
    return ", ".join(f"{ending} ({count})" for ending, count in endings.items()) or "(none)"


def _nothing_matches(target: Sequence[str] | str | None, modules: Mapping[str, nn.Module]) -> str:
    wanted = "the default" if target is None else repr(target)
    return f"target_modules: {wanted} matches nothing in this model; its linear maps end in {_linear_endings(modules)}"
