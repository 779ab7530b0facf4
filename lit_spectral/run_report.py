"""What the command line tells of a run: what is trained, a line a validation, what came of it, and what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from lit_spectral.adapters import Change, named_changes, named_wrappers
from lit_spectral.callbacks import RetentionMonitor, RunRecord
from lit_spectral.datamodules.corpora import PYTHON_DOCS
from lit_spectral.precision import advise_bf16
from lit_spectral.run_folder import own_folder
from lit_spectral.tasks import CausalLM, Task

__all__ = ["RunReport"]


class RunReport(Callback):
    """Prints a line when a fit begins, one for each validation, and at the end where everything lies.

    A validation or test by itself is a line a set. Of a run that a comparison has started, which has a `RunRecord`,
    the end is the comparison's to tell.
    """

    def __init__(self) -> None:
        self._validated = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say what is trained on what."""
        self._validated = False
        if trainer.is_global_zero and isinstance(pl_module, Task):
            print(_head(trainer, pl_module), flush=True)
            if not _compared(trainer) and str(trainer.precision) == "32-true":
                advise_bf16(pl_module.model, pl_module.device, "--trainer.precision bf16-mixed")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say what was measured."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._validated = True
            print(_step(trainer), flush=True)
        else:
            _tell_sets(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say what was measured."""
        if trainer.is_global_zero:
            _tell_sets(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Say where a run that is interrupted was; its checkpoint is written after this."""
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        fits = trainer.state.fn == TrainerFn.FITTING and trainer.global_step
        if trainer.is_global_zero and isinstance(exception, KeyboardInterrupt) and fits:
            print(f"stopped at step {trainer.global_step}" + (f"; checkpoints: {folder}" if folder else ""), flush=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say where it all lies."""
        if _compared(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        lines = _end(trainer, pl_module, own_folder(trainer))  # all processes must ask
        lines = lines if self._validated or not trainer.callback_metrics else [_step(trainer), *lines]
        if trainer.is_global_zero:
            print("\n".join(lines), flush=True)


def _compared(trainer: pl.Trainer) -> bool:
    return any(isinstance(callback, RunRecord) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def _head(trainer: pl.Trainer, task: Task) -> str:
    method = task.method
    told = getattr(method, "config", {}).get("peft_type") or getattr(method, "rank", None)
    name = type(method).__name__ + (f" ({told if isinstance(told, str) else f'rank {told}'})" if told else "")
    data = f" on {type(trainer.datamodule).__name__}" if trainer.datamodule else ""  # type: ignore[attr-defined]
    changes, wrappers = named_changes(task.model), named_wrappers(task.model)
    sizes = [(p.numel(), p.requires_grad) for p in task.model.parameters()]
    trained, total = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
    maps = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in wrappers))
    parts = [f"{name} of {task.backbone} for {type(task).__name__}{data}"]
    parts += [f"{len(wrappers)} maps ({maps})" + ("" if changes else ", no ΔW")] if wrappers else []
    parts += [f"{trained:,} of {total:,} parameters trained ({trained / total:.2%})", *_bounds(list(changes.values()))]
    parts += [f"goes on from {trainer.ckpt_path}"] if trainer.ckpt_path else []
    return "; ".join(parts)


def _bounds(changes: list[Change]) -> list[str]:
    """What holds ΔW, from the smallest to the largest of all maps."""
    uppers = [upper for change in changes for _, upper, _ in change.bounded]
    radii = [change.ball_radius for change in changes if change.ball_radius is not None]
    return [f"{what} ≤ {_span(bounds)}" for what, bounds in (("σ", uppers), ("‖ΔW‖₂", radii)) if bounds]


def _span(values: list[float]) -> str:
    least, most = f"{min(values):.3g}", f"{max(values):.3g}"
    return least if least == most else f"{least} to {most}"


def _step(trainer: pl.Trainer) -> str:
    told = {n: v for n, v in trainer.callback_metrics.items() if n == "train/loss" or not n.startswith("train/")}
    return f"step {trainer.global_step}: {_figures(told)}"


def _figures(metrics: Any, prefix: str = "") -> str:
    names = {name: "σ_max" if name == "sigma_max" else name.removeprefix(prefix) for name in metrics}
    return "  ".join(f"{names[name]} {float(value):.4g}" for name, value in metrics.items())


def _tell_sets(trainer: pl.Trainer) -> None:
    sets = dict.fromkeys(name.rpartition("/")[0] for name in trainer.callback_metrics)
    for part in sets:
        metrics = {n: value for n, value in trainer.callback_metrics.items() if n.rpartition("/")[0] == part}
        print(f"{part}: {_figures(metrics, f'{part}/')}", flush=True)


def _end(trainer: pl.Trainer, task: Any, folder: Path | None) -> list[str]:
    kept = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    best = next((each for each in kept if each.monitor and each.best_model_path), None)
    file = best or next((each for each in kept if each.best_model_path), None)
    lines = [f"best {best.monitor}: {float(best.best_model_score):.4g}"] if best and best.best_model_score else []
    lines += [f"checkpoint: {_here(file.best_model_path)}"] if file else []
    lines += [f"log folder: {_here(folder)}"] if folder else []
    bf16 = str(trainer.precision).startswith("bf16")
    monitors = [each for each in trainer.callbacks if isinstance(each, RetentionMonitor)]  # type: ignore[attr-defined]
    lines += [f"retention: {_figures(each.latest)}" for each in monitors if each.latest]
    return [*lines, *_next(task, folder, file.best_model_path if file else None, bf16)]


def _next(task: Any, folder: Path | None, checkpoint: str | None, bf16: bool) -> list[str]:
    """Commands that go on from here."""
    commands = [["tensorboard", "--logdir", _here(folder)]] if folder else []
    if checkpoint and isinstance(task, Task):
        file, command = _here(checkpoint), "lit-spectral"
        if folder and (folder / "config.yaml").is_file():
            commands.append([command, "validate", "--config", _here(folder / "config.yaml"), "--ckpt_path", file])
        if isinstance(task, CausalLM):
            commands.append([command, "evaluate", "--checkpoint", file, "--tasks", "arc_easy"])
        rounded = ["--bf16"] if bf16 else []
        commands.append([command, "retain", "--checkpoint", file, "--corpora", PYTHON_DOCS, *rounded])
        changes = named_changes(task.model).values()
        thin = all(change.factors() is not None for change in changes)
        place = ["--output", _here((folder or Path()) / "exported")]
        if changes:
            commands.append([command, "export", file, *([] if thin else ["--to", "merged"]), *place])
    return ["next:", *(f"  {shlex.join(words)}" for words in commands)] if commands else []


def _here(path: Any) -> str:
    """A path as short as it can be told from the current folder."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
