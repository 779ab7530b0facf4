"""Writes one YAML for each row of papers.csv, and one for LoRA beside each row of FCLoRA.

    python configs/write.py

The papers give LoRA's scores and not its settings: its YAMLs take learning rate, batch and epochs
of FCLoRA's row, so that only the method differs. HiLoRA Table 7 prints no ranks; its four rows are
taken for those of its budgets, 1, 2, 4 and 8 as in FCLoRA's.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
BACKBONES = {"roberta": "roberta-base", "deberta": "microsoft/deberta-v3-base"}
# Of a task that is not one of GLUE's: its class, its data and their settings.
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "squad1": ("QuestionAnswering", "SQuAD", {"path": "rajpurkar/squad", "version_2": False}),
    "squad2": ("QuestionAnswering", "SQuAD", {"path": "rajpurkar/squad_v2"}),
}
# What selects the best epoch: the metric that FCLoRA names for the task.
MONITORED = {"cola": "matthews", "stsb": "pearson", "squad1": "f1", "squad2": "f1"}


def main() -> None:
    """Write all files."""
    for name, text in render().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def render() -> dict[str, str]:
    """File name to content, for all rows."""
    with (FOLDER / "papers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    files = {}
    for row in rows:
        names = [row["method"]] + (["LoRA"] if row["method"] == "FCLoRA" else [])
        for method in names:
            name = _name(method, row)
            header = f"# {row['source']}, {row['task']}" + (", with LoRA in its place" if method == "LoRA" else "")
            note = "# Written by configs/write.py from configs/papers.csv: edit those.\n"
            files[f"{name}.yaml"] = f"{header}\n{note}" + yaml.safe_dump(_config(name, method, row), sort_keys=False)
    return files


def _name(method: str, row: dict[str, str]) -> str:
    # DeBERTaV3's rows come in two ranks.
    rank = f"_r{row['rank']}" if row["backbone"] == "deberta" else ""
    return f"{method.lower()}_{row['backbone']}_{row['task']}{rank}"


def _config(name: str, method: str, row: dict[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {"rank": int(row["rank"])}
    if method != "LoRA":
        settings |= {"sigma_bar": row["sigma_bar"], "gamma": float(row["gamma"]), "start": row["start"]}
    glue: tuple[str, str, dict[str, Any]] = ("SequenceClassification", "GLUE", {"task": row["task"]})
    task, data, options = OTHERS.get(row["task"], glue)
    best = {"monitor": f"val/{MONITORED.get(row['task'], 'accuracy')}", "mode": "max", "filename": "best"}
    # A callback of its own, since an interruption saves under the callback's file name: it must not hit the best.
    last = {"filename": "last", "save_on_exception": True, "enable_version_counter": False}
    return {
        "seed_everything": 42,
        "trainer": {
            "max_epochs": int(row["epochs"]),
            # The papers train with Hugging Face's trainer, which clips at 1.
            "gradient_clip_val": 1.0,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": "runs", "name": name},
            },
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": settings}
                for settings in (best, last)
            ],
        },
        "model": {
            "class_path": task,
            "init_args": {
                "backbone": BACKBONES[row["backbone"]],
                "method": {"class_path": method, "init_args": settings},
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"lr": float(row["lr"]), "weight_decay": 0.0},
                },
                "lr_scheduler": "linear",
            },
        },
        "data": {
            "class_path": data,
            "init_args": options | {"batch_size": int(row["batch_size"])},
        },
    }


if __name__ == "__main__":
    main()
