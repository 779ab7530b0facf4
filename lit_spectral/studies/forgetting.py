"""Which measures of an adapter go with what its model has forgotten: rank correlations over many adapters."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import rankdata

from lit_spectral.analysis.correlation import Correlation, correlation
from lit_spectral.analysis.effects import Effect
from lit_spectral.analysis.measuring import SHOWN, Changed
from lit_spectral.analysis.results import intruders, share, values_of
from lit_spectral.comparison.results import write_rows
from lit_spectral.errors import InputError
from lit_spectral.retention.measures import BASE
from lit_spectral.studies.finished import Adapter

__all__ = ["FEWEST", "MEASURES", "Point", "Predictors", "lost", "measures_of", "points_in"]

log = logging.getLogger(__name__)

# Adapters of a comparison, without which no correlation says anything.
FEWEST = 4
# What is measured of an adapter, by its name in tables; all are expected to grow with what is forgotten.
MEASURES = {
    "spectral": "‖ΔW‖₂, largest",
    "frobenius": "‖ΔW‖_F, of all",
    "rho_left": "ρ_k, in U_k",
    "rho_right": "ρ_k, in V_k",
    "energy_in_top": "in U_k and V_k",
    "intruders": f"intruders below {SHOWN}",
    "cka": "1 − CKA, last layer",
    "procrustes": "Procrustes residual, last layer",
    "kl": "KL(base ‖ adapted) on prompts",
}
# Of a text, by what is said of retention; what stands first stands for a comparison beside others.
_KINDS = ("forgetting_loss", "accuracy", "spearman", "drift")


@dataclass(frozen=True)
class Point:
    """An adapter: its measures by name, NaN where there is none, and what its run says was lost by TEXT/KIND."""

    adapter: Adapter
    measures: Mapping[str, float]
    lost: Mapping[str, float]


def lost(retention: Mapping[str, float]) -> dict[str, float]:
    """How much worse than its backbone a run's record of retention has it, in the measures' own units."""
    found = {}
    for kind in _KINDS:
        for name, value in retention.items():
            if name.endswith(f"/{kind}"):
                change = value - (retention[name.removesuffix(kind) + BASE[kind]] if kind in BASE else 0.0)
                found[name] = -change if kind in {"accuracy", "spearman"} else change
    return found


def points_in(task: str, folder: Path) -> dict[Adapter, dict[str, float]]:
    """From the adapters of a comparison's runs that came to their end to what each has lost.

    Args:
        task: what to call the comparison.
        folder: that `lit-spectral compare` has written, with texts to measure retention on.

    Raises:
        InputError: fewer than `FEWEST` have a checkpoint and retention, or a record is none.
    """
    found = {}
    for file in sorted(folder.glob("*/seed_*/record.json")):
        adapter = Adapter(
            task, file.parents[1].name, int(file.parent.name.removeprefix("seed_")), file.parent, frozenset()
        )
        try:
            had = lost(json.loads(file.read_text(encoding="utf-8")).get("retention", {}))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"forgetting-study: {file} is no record of a run; run the same compare again") from None
        if had and adapter.checkpoint.is_file() and adapter.config.is_file():
            found[adapter] = had
        else:
            what = "checkpoint or config" if had else "measure of retention"
            log.warning("forgetting-study: %s is left out: it has no %s", adapter.name, what)
    if len(found) < FEWEST:
        raise InputError(
            f"forgetting-study: {task}: {folder} has {len(found)} finished runs with retention and a checkpoint, and "
            f"{FEWEST} are needed; give the folder of a compare with --corpora or --sts"
        )
    return found


def measures_of(maps: Sequence[Changed], effect: Effect) -> dict[str, float]:
    """Of one adapter: over all its maps, and of what it does to the model on its own task's rows."""
    last = effect.states[-1]
    return {
        "spectral": max(values_of(maps, "spectral")),
        "frobenius": math.sqrt(sum(values_of(maps, "energy"))),
        **{name: share(maps, name) for name in ("rho_left", "rho_right", "energy_in_top")},
        "intruders": float(intruders(maps, SHOWN)),
        "cka": 1 - last.cka,
        "procrustes": last.procrustes,
        "kl": effect.tokens.get("kl", math.nan),
    }


class Predictors:
    """Rank correlations of every measure with every kind of loss, comparison by comparison, and of all together.

    Args:
        points: of all comparisons.
    """

    def __init__(self, points: Iterable[Point]) -> None:
        self.tasks: dict[str, list[Point]] = {}
        for point in points:
            self.tasks.setdefault(point.adapter.task, []).append(point)
        # Runs of one comparison measure the same.
        self.kinds = {task: list(having[0].lost) for task, having in self.tasks.items()}

    def of(self, measure: str, task: str, kind: str) -> Correlation:
        """Spearman's over one comparison's adapters."""
        points = self.tasks[task]
        losses = [point.lost.get(kind, math.nan) for point in points]
        return correlation([point.measures[measure] for point in points], losses, ranks=True)

    def together(self, measure: str) -> Correlation:
        """Of ranks within each comparison, by the first kind of loss of each, since units and backbones differ."""
        ours: list[float] = []
        theirs: list[float] = []
        for task, points in self.tasks.items():
            pairs = [(p.measures[measure], p.lost.get(self.kinds[task][0], math.nan)) for p in points]
            kept = [pair for pair in pairs if not any(map(math.isnan, pair))]
            for values, ranks in zip(zip(*kept, strict=True), (ours, theirs), strict=False):
                ranks += [float(rank) / len(kept) for rank in rankdata(values)]
        return correlation(ours, theirs)

    def headings(self) -> list[str]:
        """Of the columns of `rows`."""
        several = ["all, by ranks within each"] if len(self.tasks) > 1 else []
        return ["measure", *(f"{task}: {kind}" for task, kinds in self.kinds.items() for kind in kinds), *several]

    def correlations(self) -> dict[str, list[Correlation]]:
        """By measure, in the order of `headings`."""
        found = {}
        for measure in MEASURES:
            each = [self.of(measure, task, kind) for task, kinds in self.kinds.items() for kind in kinds]
            found[measure] = each + ([self.together(measure)] if len(self.tasks) > 1 else [])
        return found

    def rows(self) -> list[list[str]]:
        """A row a measure: correlation, and below it its interval."""
        return [[MEASURES[measure], *(one.text for one in each)] for measure, each in self.correlations().items()]

    def write_csv(self, folder: Path) -> None:
        """`adapters.csv`, a row an adapter, and `correlations.csv`, a row a measure and column of the table."""
        adapters: list[dict[str, Any]] = [
            {"task": task, "method": point.adapter.method, "seed": point.adapter.seed, **point.measures}
            | {f"lost/{kind}": value for kind, value in point.lost.items()}
            for task, points in self.tasks.items()
            for point in points
        ]
        write_rows(folder / "adapters.csv", list(dict.fromkeys(column for row in adapters for column in row)), adapters)
        correlations = [
            {"measure": measure, "with": heading, **one._asdict()}
            for measure, each in self.correlations().items()
            for heading, one in zip(self.headings()[1:], each, strict=True)
        ]
        write_rows(folder / "correlations.csv", list(correlations[0]), correlations)
