"""Where Updates come from: a live model, a checkpoint of ours, an adapter of peft's, fine-tuned weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lit_spectral.bars import track
from lit_spectral.errors import InputError
from lit_spectral.updates.delta import Delta
from lit_spectral.updates.of_model import of_model
from lit_spectral.updates.of_peft import CONFIG, of_peft
from lit_spectral.updates.update import Update
from lit_spectral.updates.weights import Weights

__all__ = ["of_model", "read"]


def read(source: str, backbone: str | None = None, rank: int | None = None, energy: float | None = None) -> Update:
    """The Update of what lies there, recognised by its files.

    Args:
        source: a `.ckpt` that `fit` wrote, a folder of peft's, or a folder of fine-tuned weights.
        backbone: where the backbone lies, if not where the source says; fine-tuned weights don't say.
        rank: of fine-tuned weights, to keep the nearest changes of that rank; None for all of them.
        energy: the same by the share of Σσ², in (0, 1]. What was cut off is in `origin["left_out"]`, by path.

    Raises:
        InputError: nothing there, a pickle, a damaged file, an adapter without a ΔW, or another backbone.
    """
    folder = Path(source)
    if not folder.exists():
        raise InputError(f"{source}: there is nothing there; give a .ckpt, a folder of peft's, or fine-tuned weights")
    configs = [name for name in (CONFIG, "config.json") if (folder / name).is_file()]
    if folder.is_file() or (folder.suffix == ".ckpt" and not configs):  # a sharded one is told by who reads it
        from lit_spectral.updates.of_checkpoint import of_checkpoint  # tasks bring Lightning, and stand on all the rest

        found = of_checkpoint(source, backbone)
    elif CONFIG in configs:
        found = of_peft(folder, backbone)
    elif configs:
        found = _of_tuned(source, backbone, rank, energy)
    else:
        raise InputError(
            f"{source}: neither {CONFIG} (an adapter of peft's) nor config.json (fine-tuned weights) is there; give a "
            "folder that has one, or a .ckpt"
        )
    found.check_finite(source)
    if not found.changes and not found.whole:
        raise InputError(f"{source}: nothing in it differs from its backbone")
    return found


def _of_tuned(source: str, backbone: str | None, rank: int | None, energy: float | None) -> Update:
    """The difference of two folders, a weight at a time."""
    if backbone is None:
        raise InputError(f"{source}: weights that were trained whole are read against their backbone; give --backbone")
    tuned = Weights(source)
    about = tuned.about()
    base = Weights(backbone, about["architecture"], about["config_labels"])
    changes: dict[str, Delta] = {}
    left_out: dict[str, float] = {}
    whole: dict[str, Tensor] = {}
    for path in track(list(tuned), description="ΔW", disable=len(tuned) < 8):
        name = f"{path}.weight"
        tied = [other.removesuffix(".weight") for other in tuned.tied(name) if tuned.lies(other)]
        if any(other not in tuned.maps for other in tied):
            continue  # embeddings, which are among the others
        after = tuned[path]
        if base.tensor(name) is None:  # of a head that the backbone hasn't got
            whole[name] = after.float()
            continue
        before = base[path]
        if after.shape != before.shape:
            raise InputError(
                f"{source}: {path} is {tuple(after.shape)}, and {tuple(before.shape)} in {backbone}; give the backbone "
                "that it began as"
            )
        difference = after.float() - before.float()
        if not difference.any():
            continue
        delta = Delta(matrix=difference)
        if rank is not None or energy is not None:
            delta, left_out[path] = delta.truncated(rank, energy)
        changes[path] = delta
    for name, tensor in tuned.others():
        old = base.other(name)
        if old is None or old.shape != tensor.shape or not torch.equal(old, tensor):
            whole[name] = tensor.float()
    about |= {"source": source, "method": {"name": "fine-tuned weights"}, "left_out": left_out}
    return Update(changes, whole, backbone, "", about)
