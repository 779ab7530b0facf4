"""One method on one large backbone, in a process of its own: seconds and peak memory of each thing that is done."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_spectral import methods
from lit_spectral.adapters import named_changes, trained_state
from lit_spectral.methods.spectra import Matrices, Spectra
from lit_spectral.spectra.input_directions import Fed
from lit_spectral.tasks import CausalLM

__all__ = ["METHODS", "run"]

METHODS = ("LoRA", "FCLoRA", "MiLoRA", "HiPLoRA")
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.addmm_.default,
}
# Of a matrix that is widened at a time.
SLAB = 128 * 2**20


class Stages:
    """Seconds, and peak memory in GiB, of what a process does, by stage; the latter looked at by a thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.anonymous: dict[str, float] = {}
        self.total: dict[str, float] = {}
        self._now = "start"
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs within it belongs to the stage, alone; stages of one name add up."""
        before, self._now, started = self._now, name, time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            if before != "start":
                self.seconds[before] = self.seconds.get(before, 0.0) - taken
            self._now = before

    def _watch(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            lines = dict(line.split(":", 1) for line in status.splitlines())
            for peaks, key in ((self.anonymous, "RssAnon"), (self.total, "VmRSS")):
                peaks[self._now] = max(peaks.get(self._now, 0.0), int(lines[key].split()[0]) / 2**20)
            time.sleep(0.02)


class Widened(TorchDispatchMode):
    """Products of bfloat16 in float32, slab by slab, for a CPU without instructions for them.

    On such a one torch multiplies some layouts hundreds of times slower. The results are rounded back.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in PRODUCTS or args[-1].dtype != torch.bfloat16 or kwargs:
            return func(*args, **kwargs or {})
        *added, left, right = args
        in_place = func is torch.ops.aten.addmm_.default
        out = added[0] if in_place else left.new_empty(*left.shape[:-1], right.shape[-1])
        left, width = left.float(), max(1, SLAB // (4 * right[..., 0].numel()))
        for first in range(0, right.shape[-1], width):
            columns = slice(first, first + width)
            product = left @ right[..., columns].float()
            out[..., columns] = product + added[0].expand_as(out)[..., columns] if added else product
        return out


class Timed(CausalLM):
    """The task, with the loading of its backbone as a stage, and the rest of its set-up as another."""

    stages: Stages

    def load_model(self, folder: str) -> tuple[nn.Module, list[str]]:
        """As the task's."""
        with self.stages.stage("load"):
            return super().load_model(folder)

    def configure_model(self) -> None:
        """As the task's."""
        with self.stages.stage("attach"):
            super().configure_model()


class StepTimes(Callback):
    """Seconds and loss of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._started = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Before the forward pass."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, *_: Any) -> None:
        """After the optimizer's step."""
        self.seconds.append(time.perf_counter() - self._started)
        self.losses.append(float(outputs["loss"]))


def run(folder: Path, method: str, steps: int, length: int, strategy: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Load, find spectra twice (the second time from the cache), attach, train, save; figures by name."""
    stages, requests, originals = Stages(), [], {}  # type: ignore[var-annotated]

    def timed(name: str, stage: str) -> None:
        original = originals[name] = getattr(Spectra, name)

        def within(spectra: Spectra, *arguments: Any) -> Any:
            if (name, arguments) not in requests and name != "input_directions":
                requests.append((name, arguments))
            with stages.stage(stage):
                return original(spectra, *arguments)

        setattr(Spectra, name, within)

    for name in ("draw", "quantile", "triplets"):
        timed(name, "spectra")
    timed("input_directions", "inputs")
    task = Timed(
        str(folder),
        getattr(methods, method)(target_modules=TARGETS),
        dtype="bfloat16",
        gradient_checkpointing=True,
        **settings,
    )
    task.stages = stages
    rows = torch.randint(2, 100, (steps, length), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in rows]
    narrow = not torch.cuda.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    times = StepTimes()
    with tempfile.TemporaryDirectory() as scratch, Widened() if narrow else nullcontext():
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            strategy=strategy,
            max_epochs=1,
            callbacks=[times],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=scratch,
        )
        with stages.stage("steps"):
            trainer.fit(task, torch.utils.data.DataLoader(batches, batch_size=1))  # type: ignore[arg-type]
        with stages.stage("save"):
            file = Path(scratch) / "adapter.ckpt"
            trainer.save_checkpoint(file, weights_only=True)
        written = file.stat().st_size
    for name, original in originals.items():
        setattr(Spectra, name, original)
    with stages.stage("cached"):
        again(task, requests)
    trained: list[Tensor] = list(trained_state(task.model).values())
    return {
        "seconds": {name: round(taken, 2) for name, taken in stages.seconds.items()},
        "anonymous": stages.anonymous,
        "total": stages.total,
        "steps": times.seconds,
        "losses": times.losses,
        "gpu": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        "file": written,
        "adapter": sum(tensor.nbytes for tensor in trained),
        "widened": narrow,
    }


def again(task: CausalLM, requests: list[tuple[str, tuple[Any, ...]]]) -> None:
    """What the method asked of the weights' spectra, once more, by an object that remembers nothing."""
    targets = {name: adapter.base_layer for name, adapter in named_changes(task.encoder).items()}
    spectra: Any = Spectra(Matrices(targets), lambda: Fed(task.encoder, targets))  # type: ignore[arg-type]
    for name, arguments in requests:
        getattr(spectra, name)(*arguments)
