"""The Update of a checkpoint: all that ΔW is made of is in it, and of the backbone its config is enough."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_spectral.adapters.linear import is_transposed, linear_shape
from lit_spectral.backbone_digest import same_backbone
from lit_spectral.backbones import fetch
from lit_spectral.checkpoint import load
from lit_spectral.checkpoint_file import BENEATH, read, saved_by_task
from lit_spectral.methods import FullFineTuning
from lit_spectral.methods.base import Method, Site
from lit_spectral.methods.spectra import Spectra
from lit_spectral.reading import Reading
from lit_spectral.spectra import Part, SingularTriplets
from lit_spectral.spectra.input_directions import Fed
from lit_spectral.spectra.linalg import all_finite
from lit_spectral.tasks import Task
from lit_spectral.tasks.rebuild import rebuilt
from lit_spectral.updates.beneath import of_saved, on_top
from lit_spectral.updates.delta import Delta
from lit_spectral.updates.of_model import about, delta_of, of_model
from lit_spectral.updates.update import Update
from lit_spectral.updates.weights import Weights

__all__ = ["of_checkpoint"]


def of_checkpoint(source: str, backbone: str | None) -> Update:
    """What training left, read without the backbone's weights; they are loaded where ΔW is made of them too.

    So it is with peft's methods, references that HiRA takes of W₀, and methods of the user's own. Full fine-tuning
    reads them a map at a time. What lay beneath an adapter is counted in.

    Args:
        source: a `.ckpt` that `fit` or `export` wrote.
        backbone: where the backbone lies now; None for where it was.

    Raises:
        InputError: as `lit_spectral.checkpoint.load`, and `of_model`.
    """
    content = read(source)
    saved = saved_by_task(content)
    given = {} if backbone is None else {"backbone": backbone}
    task = rebuilt(saved, Task, source, given)  # type: ignore[type-abstract]
    noted = {
        "source": source,
        "method": _plainly(task._identity()["method"]),
        "dtype": task.loading.dtype,
        "steps": content["global_step"],
    }
    if isinstance(saved.get("origin"), dict):  # of one that `export` wrote: where it came from
        noted |= saved["origin"]
    state = {name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()}
    earlier = of_saved(content[BENEATH], source) if BENEATH in content else None
    found = _without_backbone(task, state, saved["backbone_digest"], earlier is None)
    if found is None:
        task = load(source, backbone)
        return of_model(task.model, task.backbone, task.backbone_digest, noted)
    found = replace(found, origin={**found.origin, **noted})
    return found if earlier is None else on_top(found, earlier)


@torch.no_grad()
def _without_backbone(task: Task, state: Mapping[str, Tensor], digest: str, alone: bool) -> Update | None:
    """The Update of a task's trained tensors by name in its model; None where that can't be had without W₀.

    Nor is it of weights that are trained themselves, where they did not begin at the backbone's `alone`.
    """
    task.loading = replace(task.loading, weights=False)
    model: Any = task.load_model(fetch(task.backbone))[0]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    whole: dict[str, Tensor] = {}
    adapters: dict[str, dict[str, Tensor]] = defaultdict(dict)
    trained: dict[str, Tensor] = {}  # weights of maps that are trained themselves
    for name, tensor in state.items():
        plain, (path, _, part) = name.replace(".base_layer.", "."), name.rpartition(".")
        if shapes.get(plain) != tensor.shape:
            adapters[path][part] = tensor
        elif name.endswith(".base_layer.weight"):
            trained[plain.removesuffix(".weight")] = tensor
        else:
            whole[plain] = tensor.float()
    changes = _adapted(task.method, model, adapters)
    if trained and changes is not None:
        changes = _differences(task, model, trained, digest) if alone else None
    return None if changes is None else Update(changes, whole, task.backbone, digest, about(model))


def _adapted(method: Method, model: Any, found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Delta] | None:
    """ΔW by path of adapters whose tensors were found; None where one's aren't enough for it, or aren't its own."""
    adapts = not getattr(type(method).build, "__isabstractmethod__", False)
    if found and not (adapts and type(method).__module__.startswith("lit_spectral.")):
        return None
    encoder = model.base_model
    names = {module: name for name, module in encoder.named_modules()}
    modules = dict(model.named_modules())
    layers: dict[str, nn.Module] = {path: modules[path] for path in found if _is_map(modules.get(path))}
    targets = {names[layer]: layer for layer in layers.values() if layer in names}
    if len(targets) < len(found):
        return None
    spectra, unread = _Unknown(targets), Reading(nn.Module())
    changes = {}
    for path, tensors in found.items():
        name = names[layers[path]]
        # What holds a change while it trains, ball and inputs, is put on by others than `build`.
        adapter = method.build(Site(name, targets[name], encoder, spectra, unread))
        own = {part: tensor for part, tensor in adapter.state_dict().items() if not part.startswith("base_layer.")}
        if {part: tensor.shape for part, tensor in own.items()} != {p: tensor.shape for p, tensor in tensors.items()}:
            return None
        adapter.load_state_dict(tensors, strict=False, assign=True)
        changes[path] = delta_of(adapter)
        if not all(map(all_finite, changes[path].tensors())):
            return None
    return changes


def _differences(task: Task, model: Any, trained: Mapping[str, Tensor], digest: str) -> dict[str, Delta] | None:
    """W − W₀ by path, W₀ from the backbone's files; None where these can't be told to be its own."""
    weights = Weights(task.backbone, type(model).__name__, model.config.id2label)
    known = weights.digest()
    if not (isinstance(task.method, FullFineTuning) and known and same_backbone(known, digest)):
        return None
    changes = {}
    for path, tensor in trained.items():
        after = tensor.mT if is_transposed(weights.maps[path]) else tensor
        # Rounded as it was when training began.
        changes[path] = Delta(matrix=after.float() - weights[path].to(tensor.dtype).float())
    return changes


def _is_map(layer: nn.Module | None) -> bool:
    """As far as that can be told without its weight."""
    return layer is not None and (isinstance(layer, nn.Linear) or is_transposed(layer))


class _Unknown(Spectra):
    """NaN for every part of a spectrum, in its shape, 1 for bounds, and no inputs: ΔW is not made of these."""

    def __init__(self, targets: Mapping[str, nn.Module]) -> None:
        super().__init__({}, lambda: Fed(nn.Module(), {}))
        self._targets = targets

    def quantile(self, name: str, quantile: float) -> float:
        """A bound that is one."""
        return 1.0

    def norm(self, name: str) -> float:
        """The same."""
        return 1.0

    def input_gain(self, name: str) -> float:
        """The same."""
        return 1.0

    def input_directions(self, name: str, count: float) -> Tensor:
        """None, (in, 0)."""
        return torch.empty(linear_shape(self._targets[name])[1], 0)

    def draw(self, rank: int, seed: int, quantile: float) -> None:
        """Nothing is computed."""

    def triplets(self, name: str, part: Part, rank: int, seed: int = 0) -> SingularTriplets:
        """NaN as U (out, r), σ (r,) and V (in, r)."""
        out_features, in_features = linear_shape(self._targets[name])
        shapes = (out_features, rank), (rank,), (in_features, rank)
        return SingularTriplets(*(torch.full(shape, torch.nan) for shape in shapes))


def _plainly(settings: Any) -> Any:
    return json.loads(json.dumps(settings, default=str))
