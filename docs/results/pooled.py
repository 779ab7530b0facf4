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


def forgotten(row: Row) -> float:
    """Forgetting loss on WikiText-2 above the backbone's own entropy (nats a token): MiLoRA §5.4, from 0."""
    return float(row["retention/wikitext-2/forgetting_loss"]) - float(row["retention/wikitext-2/base_entropy"])


def saved_loss(ours: Row, lora: Row) -> float:
    """How much lower the validation loss is, in % of LoRA's."""
    return 100 * (1 - float(ours["metrics/val/loss"]) / float(lora["metrics/val/loss"]))


# For each folder: how much better than LoRA a run is, and what it lost of what the backbone had.
TASKS: dict[str, tuple[Callable[[Row, Row], float], Callable[[Row], float]]] = {
    "minilm_mrpc": (
        points("metrics/val/accuracy"),
        lambda row: float(row["retention/sts/base_spearman"]) - float(row["retention/sts/spearman"]),
    ),
    "minilm_stsb": (points("metrics/val/spearman"), lambda row: float(row["retention/wikitext-2/drift"])),
    "smollm2_commonsense": (saved_loss, forgotten),
    "smollm2_gsm8k": (saved_loss, forgotten),
}


def main() -> None:
    """Print one Markdown row a backbone and method: pairs, mean difference with its 95 % interval, mean share lost."""
    print("| backbone | method | pairs | better than LoRA by | lost |\n| --- | --- | --- | --- | --- |")
    pooled: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for folder, (gain, lost) in TASKS.items():
        file = HERE / folder / "runs.csv"
        rows = list(csv.DictReader(file.open(encoding="utf-8"))) if file.exists() else []
        reference = {row["seed"]: row for row in rows if row["method"] == "LoRA"}
        for row in rows:
            if row["method"] != "LoRA" and (lora := reference.get(row["seed"])):
                pairs = pooled.setdefault((folder.partition("_")[0], row["method"]), [])
                pairs.append((gain(row, lora), lost(row) / lost(lora)))
    for (backbone, method), pairs in pooled.items():
        gains, shares = zip(*pairs, strict=True)
        mean, low, high = paired_difference(gains, [0.0] * len(gains))
        share = f"{statistics.fmean(shares):.0%}"
        print(f"| {backbone} | {method} | {len(pairs)} | {mean:+.2f} ({low:+.2f} to {high:+.2f}) | {share} |")


if __name__ == "__main__":
    main()
