"""The names of metrics, and torchmetrics behind each."""

from __future__ import annotations

from typing import Any

from torch import nn

from lit_spectral.errors import InputError

__all__ = ["METRICS", "build_metrics"]

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")


def build_metrics(names: list[str], num_labels: int) -> nn.ModuleDict:
    """A torchmetrics object for each name; f1 is of class 1 when there are two classes, else macro.

    Raises:
        InputError: a name that is not in `METRICS`.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise InputError(f"metrics: {', '.join(unknown)} unknown; known are {', '.join(METRICS)}")
    if num_labels == 1 and (classes := sorted({"accuracy", "f1", "matthews"} & set(names))):
        raise InputError(f"metrics: {', '.join(classes)} are of classes, and the labels are numbers; give pearson")
    return nn.ModuleDict({name: _build(name, num_labels) for name in names})


def _build(name: str, num_labels: int) -> Any:
    import torchmetrics.classification as c
    import torchmetrics.regression as r

    if name == "pearson":
        return r.PearsonCorrCoef()
    if name == "spearman":
        return r.SpearmanCorrCoef()
    if name == "accuracy":
        return c.MulticlassAccuracy(num_labels, average="micro")
    if name == "matthews":
        return c.MulticlassMatthewsCorrCoef(num_labels)
    return c.BinaryF1Score() if num_labels == 2 else c.MulticlassF1Score(num_labels, average="macro")
