"""Differences from LoRA over all tasks and seeds of a backbone, from the folders' runs.csv."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable
from pathlib import Path

from lit_spectral.comparison.results import paired_difference

Row = dict[str, str]
HERE = Path(__file__).parent


def points(name: str) -> Callable[[Row, Row], float]:
    """Difference of a score in [0, 1], in points; above 0 is better."""
    return lambda ours, lora: 100 * (float(ours[name]) - float(lora[name]))


def lost(after: str, before: str | None = None) -> Callable[[Row], float]:
    """How far a measure has moved from the backbone's, or from 0."""
    return lambda row: abs(float(row[f"retention/{after}"]) - (float(row[f"retention/{before}"]) if before else 0))


def saved_loss(ours: Row, lora: Row) -> float:
    """How much lower the validation loss is, in % of LoRA's."""
    return 100 * (1 - float(ours["metrics/val/loss"]) / float(lora["metrics/val/loss"]))


FORGETTING = lost("wikitext-2/forgetting_loss", "wikitext-2/base_entropy")  # MiLoRA §5.4, in nats a token
# For each folder: how much better than LoRA a run is, and by what it is measured what the backbone lost.
TASKS: dict[str, tuple[Callable[[Row, Row], float], list[Callable[[Row], float]]]] = {
    "minilm_mrpc": (points("metrics/val/accuracy"), [lost("sts/spearman", "sts/base_spearman"), lost("sts/drift")]),
    "minilm_stsb": (points("metrics/val/spearman"), [lost("wikitext-2/drift")]),
    "smollm2_commonsense": (saved_loss, [FORGETTING]),
    "smollm2_gsm8k": (saved_loss, [FORGETTING]),
}


def main() -> None:
    """Print one Markdown row a backbone and method: pairs, mean difference with its 95 % interval, share lost.

    The share is the mean over tasks of what was lost over what LoRA lost, both summed over seeds; where a
    task has two measures, by the first and by the second.
    """
    print("| backbone | method | pairs | better than LoRA by | lost |\n| --- | --- | --- | --- | --- |")
    gains: dict[tuple[str, str], list[float]] = {}
    shares: dict[tuple[str, str], list[list[float]]] = {}
    for folder, (gain, measures) in TASKS.items():
        file = HERE / folder / "runs.csv"
        rows = list(csv.DictReader(file.open(encoding="utf-8"))) if file.exists() else []
        reference = {row["seed"]: row for row in rows if row["method"] == "LoRA"}
        for name in dict.fromkeys(row["method"] for row in rows if row["method"] != "LoRA"):
            pairs = [(row, reference[row["seed"]]) for row in rows if row["method"] == name]
            key = folder.partition("_")[0], name.partition(" ")[0]
            gains.setdefault(key, []).extend(gain(row, lora) for row, lora in pairs)
            of_task = [sum(m(row) for row, _ in pairs) / sum(m(lora) for _, lora in pairs) for m in measures]
            shares.setdefault(key, []).append(of_task)
    for (backbone, method), differences in gains.items():
        mean, low, high = paired_difference(differences, [0.0] * len(differences))
        by = [statistics.fmean(task[which] for task in shares[backbone, method]) for which in (0, -1)]
        share = " or ".join(dict.fromkeys(f"{value:.0%}" for value in by))
        print(f"| {backbone} | {method} | {len(differences)} | {mean:+.2f} ({low:+.2f} to {high:+.2f}) | {share} |")


if __name__ == "__main__":
    main()
