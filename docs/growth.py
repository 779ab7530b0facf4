"""docs/growth.png, from a folder that quickstart or compare left: python docs/growth.py runs/quickstart/STAMP."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).parent


def draw(runs: Path, file: Path) -> None:
    """The largest singular value of ΔW over steps: of all layers the largest, and their mean; a colour a method."""
    figure = Figure(figsize=(8.2, 4.8), layout="constrained")
    axes = figure.subplots()
    # The first method in the first colour, as on compare's page; LoRA is what others are compared with.
    methods = sorted((place.parent for place in runs.glob("*/seed_*")), key=lambda place: (place.name != "LoRA", place))
    for number, method in enumerate(dict.fromkeys(methods)):
        run = EventAccumulator(str(min(method.glob("seed_*"))), size_guidance={"scalars": 0}).Reload()
        for over, line in (("max", "-"), ("mean", ":")):
            points = run.Scalars(f"spectral_norm/{over}")
            label = f"{method.name}, {over} over layers"
            axes.plot([p.step for p in points], [p.value for p in points], line, color=f"C{number}", label=label)
    axes.set(xlabel="optimizer step", ylabel="largest singular value of ΔW", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    draw(Path(sys.argv[1]), HERE / "growth.png")
