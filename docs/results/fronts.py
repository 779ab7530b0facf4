"""Draws fronts.png: what each method reaches in score and retention, of every folder here whose runs were scaled."""

from __future__ import annotations

from pathlib import Path

from lit_spectral import pages
from lit_spectral.comparison.front_view import Fronts
from lit_spectral.comparison.records import read_records

HERE = Path(__file__).parent


def main() -> None:
    """One panel a folder, by the first measure of retention that its runs have."""
    compared = {file.parent.name: read_records(file) for file in sorted(HERE.glob("*/records.jsonl"))}
    scaled = {name: Fronts(found, 0.0) for name, found in compared.items() if any(run.scales for run in found.runs)}
    methods = list(dict.fromkeys(method for fronts in scaled.values() for method in fronts.methods))
    colours = {method: f"C{number}" for number, method in enumerate(methods)}
    figure, axes = pages.axes(len(scaled), 6.2 * len(scaled), 4.6)
    for ax, (name, fronts) in zip(axes, scaled.items(), strict=True):
        measure = fronts.measures[0]
        fronts.draw(ax, measure, colours)
        ax.set(title=name.replace("_", " "), xlabel=measure.title, ylabel=fronts.comparison.task.title)
    figure.savefig(HERE / "fronts.png", dpi=110)


if __name__ == "__main__":
    main()
