"""Draws fronts.png: what each method reaches in score and retention, of every folder here whose runs were scaled."""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps

from lit_spectral import pages
from lit_spectral.comparison.front_view import Fronts
from lit_spectral.comparison.records import read_records

HERE = Path(__file__).parent


def main() -> None:
    """One panel a folder: encoders by words or sentences, decoders, whose loss may fall, by forgetting loss."""
    compared = {file.parent.name: read_records(file) for file in sorted(HERE.glob("*/records.jsonl"))}
    scaled = {name: Fronts(found, 0.0) for name, found in compared.items() if any(run.scales for run in found.runs)}
    methods = list(dict.fromkeys(method for fronts in scaled.values() for method in fronts.methods))
    palette = colormaps["tab20"].colors  # in pairs, dark and light
    colours = {method: palette[2 * number % 20 + number // 10] for number, method in enumerate(methods)}
    rows = -(-len(scaled) // 2)
    figure, axes = pages.axes(2, 9.6, 3.9 * rows, rows)  # two abreast, to be read on a telephone too
    for ax in axes[len(scaled) :]:
        ax.set_axis_off()
    for ax, (name, fronts) in zip(axes, scaled.items(), strict=False):
        task = fronts.comparison.task
        of_decoder = [each for each in fronts.measures if each.name.endswith("forgetting_loss")]
        measure = fronts.measures[0] if task.higher_is_better else of_decoder[0]
        fronts.draw(ax, measure, colours)
        ax.set(title=name.replace("_", " ").removesuffix(" fronts"), xlabel=measure.title, ylabel=task.title)
        # Better is up and to the right in all panels.
        if not measure.higher_is_better:
            ax.invert_xaxis()
        if not task.higher_is_better:
            ax.invert_yaxis()
    figure.savefig(HERE / "fronts.png", dpi=110)


if __name__ == "__main__":
    main()
