"""`lit-spectral quickstart`: LoRA beside FCLoRA on what ships with Python, and what each forgets."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table
from torch import nn

from lit_spectral.adapters import named_changes
from lit_spectral.adapters.stacking import singular_values
from lit_spectral.datamodules import MaskedText
from lit_spectral.tasks import MaskedLM

__all__ = ["run"]

METHODS = ("LoRA", "FCLoRA")


class Result(NamedTuple):
    """What quickstart shows of one method."""

    method: str
    accuracy: float
    masked: float
    norm: float
    bound: float | None
    log_folder: Path


def run(fit: Callable[[list[str]], Any], config: str) -> None:
    """Fit the config with each method, then print the comparison and draw the growth of ‖ΔW‖₂.

    Args:
        fit: from command-line arguments to the finished LightningCLI.
        config: YAML of a sentence task on an encoder with a masked-language head.
    """
    console = Console()
    name = f"quickstart/{time.strftime('%Y%m%d-%H%M%S')}"  # a folder of its own each time
    results = []
    for method in METHODS:
        console.rule(f"{method} on {config}")
        logger = [f"--trainer.logger.init_args.name={name}", f"--trainer.logger.init_args.version={method}"]
        cli = fit(["fit", f"--config={config}", f"--model.method={method}", *logger])
        results.append(_measure(method, cli))
    before = _masked_accuracy(cli.model.backbone, None)
    picture = results[0].log_folder.parent / "growth.png"
    draw_growth([(result.method, result.log_folder) for result in results], picture)
    console.rule("What was learned, and what was forgotten")
    console.print(_table(results, before))
    console.print(f"growth of the largest singular value: [bold]{picture}[/bold]")
    console.print(f"all curves: [bold]tensorboard --logdir {results[0].log_folder.parent}[/bold]")


def _measure(method: str, cli: Any) -> Result:
    task = cli.model
    changes = list(named_changes(task.model).values())
    factors = [found for change in changes if (found := change.factors()) is not None]
    norms = [float(values[0]) for values in singular_values(factors)]
    bounds = [change.bounded[0].upper if change.bounded else None for change in changes]
    norm, bound = max(zip(norms, bounds, strict=True), key=lambda pair: pair[0])
    masked = _masked_accuracy(task.backbone, task.encoder)
    accuracy = float(cli.trainer.callback_metrics["val/accuracy"])
    return Result(method, accuracy, masked, norm, bound, Path(cli.trainer.log_dir))


def _masked_accuracy(backbone: str, encoder: nn.Module | None) -> float:
    """Accuracy on fixed masks of the pretraining text's held-out lines, with `encoder` in the backbone's place."""
    task = MaskedLM(backbone)
    task.configure_model()
    if encoder is not None:
        setattr(task.model, task.model.base_model_prefix, encoder)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    return trainer.validate(task, MaskedText(max_length=64), verbose=False)[0]["val/accuracy"]


def _table(results: list[Result], before: float) -> Table:
    table = Table()
    for heading in ("method", "task accuracy", "masked-LM accuracy before", "after", "largest ‖ΔW‖₂", "its bound σ̄"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for r in results:
        bound = "none" if r.bound is None else f"{r.bound:.2f}"
        cells = (f"{r.accuracy:.3f}", f"{before:.3f}", f"{r.masked:.3f}", f"{r.norm:.2f}", bound)
        table.add_row(r.method, *cells)
    return table


def draw_growth(runs: list[tuple[str, Path]], picture: Path) -> None:
    """Plot `spectral_norm/max` and the mean over layers from TensorBoard folders, one colour a run, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    for colour, (name, folder) in enumerate(runs):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        for tag, style in (("spectral_norm/max", "-"), ("spectral_norm/mean", ":")):
            points = events.Scalars(tag)
            label = f"{name}, {tag.rsplit('/', 1)[1]} over layers"
            axes.plot([p.step for p in points], [p.value for p in points], style, color=f"C{colour}", label=label)
    axes.set(xlabel="optimizer step", ylabel="largest singular value of ΔW", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture)
    plt.close(figure)
