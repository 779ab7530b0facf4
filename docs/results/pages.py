"""Writes index.html, table.csv, runs.csv and fronts.csv beside every records.jsonl."""

from __future__ import annotations

from pathlib import Path

from lit_spectral.comparison.front_view import Fronts
from lit_spectral.comparison.page import write_page
from lit_spectral.comparison.records import read_records
from lit_spectral.comparison.results import write_csv
from lit_spectral.files import write_text

HERE = Path(__file__).parent


def main() -> None:
    """Of all folders here that have records; the command of each comparison stands in README.md."""
    for file in sorted(HERE.glob("*/records.jsonl")):
        comparison = read_records(file)
        # Half a point of a score, or 1 % of a loss, is what a method may stay behind by.
        lowest = min(run.record["metrics"][comparison.task.name] for run in comparison.runs)
        within = 0.005 if comparison.task.higher_is_better else 0.01 * lowest
        fronts = Fronts(comparison, within) if any(run.scales for run in comparison.runs) else None
        write_csv(comparison, file.parent)
        if fronts is not None:
            fronts.write_csv(file.parent / "fronts.csv")
        title = file.parent.name.replace("_", " ")
        page = write_page(comparison, fronts, title, "docs/results/README.md has the command")
        write_text(file.parent / "index.html", page)
        print(file.parent / "index.html")


if __name__ == "__main__":
    main()
