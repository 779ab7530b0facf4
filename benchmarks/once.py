"""What is paid once, beside peft: starting at singular components, adapter files, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from lit_spectral.callbacks import SpectralMonitor
from torch import nn

from benchmarks.contenders import CONTENDERS, copied
from benchmarks.measure import Ratio, in_turn, ratio
from lit_spectral.adapters import adapters, find_targets, named_changes, packed, trained_state
from lit_spectral.methods import MiLoRA, PiSSA

__all__ = ["command_line", "files", "start", "svdvals"]

CPU = torch.device("cpu")


def start(model: nn.Module, rounds: int) -> dict[str, Ratio]:
    """Seconds to attach and initialise from a warm cache, hashing included, over those of peft's full SVD."""

    def ours(method: type[PiSSA]) -> None:
        changed = copied(model)
        method(rank=8).apply(changed, changed.base_model)  # type: ignore[arg-type]

    def theirs() -> None:
        changed = copied(model, weights=True)
        targets = list(find_targets(changed.base_model, None))  # type: ignore[arg-type]
        peft.get_peft_model(
            changed, peft.LoraConfig(r=8, init_lora_weights="pissa", target_modules=r".*\.(" + "|".join(targets) + ")")
        )

    ours(PiSSA), ours(MiLoRA)  # fills the cache
    actions = {"PiSSA": lambda: ours(PiSSA), "MiLoRA": lambda: ours(MiLoRA), "theirs": theirs}
    seconds = in_turn(actions, rounds, CPU, warm=False)
    return {name: ratio(seconds[name], seconds["theirs"]) for name in ("PiSSA", "MiLoRA")}


def files(model: nn.Module, batch: dict[str, Any], name: str, rounds: int) -> dict[str, Ratio]:
    """Bytes of an adapter's file, and seconds to write it and to load it into a model, over those of peft LoRA."""
    ours, theirs = CONTENDERS[name](model, batch).model, CONTENDERS["peft LoRA"](model, batch).model
    with tempfile.TemporaryDirectory() as scratch:
        ckpt, folder = Path(scratch) / "adapter.ckpt", Path(scratch) / "peft"

        def load_ours() -> None:
            ours.load_state_dict(torch.load(ckpt, weights_only=True), strict=False)

        def load_theirs() -> None:
            peft.set_peft_model_state_dict(theirs, peft.load_peft_weights(str(folder), device="cpu"))  # type: ignore[no-untyped-call]

        saving = {
            "ours": lambda: torch.save(packed(trained_state(ours)), ckpt),
            "theirs": lambda: theirs.save_pretrained(folder),  # type: ignore[operator]
        }
        save = in_turn(saving, rounds, CPU)
        load = in_turn({"ours": load_ours, "theirs": load_theirs}, rounds, CPU)
        size = ckpt.stat().st_size / (folder / "adapter_model.safetensors").stat().st_size
    return {
        "size": Ratio(size, size, size, 1),
        "save": ratio(save["ours"], save["theirs"]),
        "load": ratio(load["ours"], load["theirs"]),
    }


def svdvals(model: nn.Module, rounds: int) -> dict[str, Ratio]:
    """Seconds of dense `svdvals` of every ΔW over those of one measurement of the monitor."""
    dense: list[float] = []
    monitor = SpectralMonitor()
    monitor.watch(named_changes(model))
    by_shape: dict[torch.Size, list[Any]] = {}
    for adapter in adapters(model):
        by_shape.setdefault(adapter.weight.shape, []).append(adapter)
    quick = in_turn({"monitor": monitor.measure}, rounds, CPU)["monitor"]
    for _ in range(rounds):
        total = 0.0
        for alike in by_shape.values():  # one of each shape stands for all
            change = alike[0].delta_weight()
            taken = in_turn({"svd": lambda change=change: torch.linalg.svdvals(change)}, 1, CPU, warm=False)["svd"][0]  # type: ignore[misc]
            total += taken * len(alike)
        dense.append(total)
    return {"svdvals": ratio(dense, quick)}


def command_line(rounds: int) -> dict[str, Ratio]:
    """Seconds of `lit-spectral fit --help` over those of importing Lightning's command line."""

    def run(*arguments: str) -> Callable[[], object]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)

    actions = {"ours": run("-m", "lit_spectral", "fit", "--help"), "theirs": run("-c", "import lightning.pytorch.cli")}
    seconds = in_turn(actions, rounds, CPU)
    return {"help": ratio(seconds["ours"], seconds["theirs"])}
