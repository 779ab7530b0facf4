"""Writes one YAML for each row of papers.csv and decoders.csv, and one for LoRA beside each row of FCLoRA's encoders.

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
# What a table leaves open, and what is taken.
OPEN_ENCODERS = {
    "FCLoRA App. K": "It gives grids alone: lr and gamma are their first values, the rest is that of Table 8's row.",
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
            header += f". {OPEN_ENCODERS[row['source']]}" if row["source"] in OPEN_ENCODERS else ""
            note = "# Written by configs/write.py from configs/papers.csv: edit those.\n"
            files[f"{name}.yaml"] = f"{header}\n{note}" + yaml.safe_dump(_config(name, method, row), sort_keys=False)
    return files | render_decoders()


def _name(method: str, row: dict[str, str]) -> str:
    # DeBERTaV3's rows come in two ranks.
    rank = f"_r{row['rank']}" if row["backbone"] == "deberta" else ""
    # FourierFT's set-up adapts query and value alone.
    maps = "_qv" if row["target_modules"] else ""
    return f"{method.lower()}_{row['backbone']}_{row['task']}{rank}{maps}"


def _config(name: str, method: str, row: dict[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {"rank": int(row["rank"])}
    if method != "LoRA":
        settings |= {"sigma_bar": row["sigma_bar"], "gamma": float(row["gamma"]), "start": row["start"]}
    glue: tuple[str, str, dict[str, Any]] = ("SequenceClassification", "GLUE", {"task": row["task"]})
    if row["target_modules"]:
        settings["target_modules"] = row["target_modules"].split()
    task, data, options = OTHERS.get(row["task"], glue)
    return {
        "seed_everything": 42,
        "trainer": {
            "max_epochs": int(row["epochs"]),
            # The papers train with Hugging Face's trainer, which clips at 1.
            "gradient_clip_val": 1.0,
            **_kept(name, f"val/{MONITORED.get(row['task'], 'accuracy')}", "max"),
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


def _kept(name: str, monitor: str, mode: str) -> dict[str, Any]:
    """The trainer's logger, and its callbacks that save the best epoch and the last."""
    best = {"monitor": monitor, "mode": mode, "filename": "best"}
    # A callback of its own, since an interruption saves under the callback's file name: it must not hit the best.
    last = {"filename": "last", "save_on_exception": True, "enable_version_counter": False}
    return {
        "logger": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "runs", "name": name},
        },
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saved} for saved in (best, last)
        ],
    }


# Decoders: every column of decoders.csv that is empty is left to its default.
DECODERS = {
    "llama": "huggyllama/llama-7b",
    "llama2": "meta-llama/Llama-2-7b-hf",
    "llama3": "meta-llama/Meta-Llama-3-8B",
    "llama31": "meta-llama/Llama-3.1-8B",
}
# Class and settings of the data, and what it is called in the header.
DECODER_DATA: dict[str, tuple[str, dict[str, Any], str]] = {
    "commonsense": ("Commonsense", {}, "commonsense"),
    "gsm8k": ("Math", {}, "GSM8K"),
    "convai2": ("ConvAI2", {}, "ConvAI2"),
    "mmlu": ("Instructions", {"path": "tatsu-lab/alpaca"}, "Alpaca-52k, to be evaluated with --tasks mmlu"),
    "scienceqa": ("ScienceQA", {}, "ScienceQA"),
    "code": (
        "Instructions",
        {"path": "sahil2801/CodeAlpaca-20k", "humaneval": "openai/openai_humaneval"},
        "CodeAlpaca-20k, tested on HumanEval",
    ),
    "ultrafeedback": (
        "Instructions",
        {
            "path": "openbmb/UltraFeedback",
            "alpaca_eval": "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json",
            "max_new_tokens": 2048,
            "generation": {"repetition_penalty": 1.1, "no_repeat_ngram_size": 5},
        },
        "UltraFeedback, tested on AlpacaEval",
    ),
}
# What the papers leave open, and what is taken.
OPEN = {
    "MiLoRA Table 8": "Weight decay is not stated: 0.",
    "MiLoRA Table 9": "The rank is not in the table: 64, as in the paper's other rows on MetaMathQA; weight decay 0.",
    "HiRA Table 7": "Its rate is 1e-4 or 2e-4, the text's 1e-3; no schedule or length is stated. r as in Table 1.",
    "FCLoRA Table 14": "Rank (by its parameter count), layers, schedule and warm-up are those of LLM-Adapters' LoRA.",
    "HiP-LoRA Table 4": "Learning rate, scale, budget and sensitivity are lost with the paper's equations: ours.",
}


def render_decoders() -> dict[str, str]:
    """File name to content, for all rows of decoders.csv."""
    with (FOLDER / "decoders.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    files = {}
    for row in rows:
        name = _decoder_name(row)
        trained = (
            "MetaMathQA, tested on GSM8K and MATH" if row["train_on"] == "metamath" else DECODER_DATA[row["task"]][2]
        )
        header = f"# {row['source']}, {trained}. {OPEN[row['source']]}\n"
        note = "# Written by configs/write.py from configs/decoders.csv: edit those.\n"
        files[f"{name}.yaml"] = header + note + yaml.safe_dump(_decoder_config(name, row), sort_keys=False)
    return files


def _decoder_name(row: dict[str, str]) -> str:
    # MiLoRA has two set-ups for one data set.
    suffix = "_pissa_setup" if row["source"] == "MiLoRA Table 9" else ""
    return f"{row['method'].lower()}_{row['backbone']}_{row['task']}{suffix}"


def _decoder_config(name: str, row: dict[str, str]) -> dict[str, Any]:
    kinds = {"rank": int, "alpha": float, "dropout": float, "sigma_bar": str, "gamma": float, "start": str}
    settings = {key: kind(row[key]) for key, kind in (kinds | {"principal_rank": int}).items() if row[key]}
    module, options, _ = DECODER_DATA[row["task"]]
    data: dict[str, Any] = options | {"template": row["template"], "batch_size": int(row["batch_size"])}
    data |= {"train_on": row["train_on"]} if row["train_on"] else {}
    data |= {"reasoning": False} if row["reasoning"] == "false" else {}
    data |= {"max_length": int(row["max_length"])} | ({"packing": True} if row["packing"] else {})
    return {
        "seed_everything": 42,
        "trainer": {
            "max_epochs": int(row["epochs"] or -1),
            **({"max_steps": int(row["steps"])} if row["steps"] else {}),
            **({"val_check_interval": int(row["val_every"])} if row["val_every"] else {}),
            "accumulate_grad_batches": int(row["accumulate"] or 1),
            "gradient_clip_val": 1.0,
            "precision": "bf16-mixed",
            **_kept(name, "val/loss", "min"),
        },
        "model": {
            "class_path": "CausalLM",
            "init_args": {
                "backbone": DECODERS[row["backbone"]],
                "dtype": "bfloat16",
                "method": {
                    "class_path": row["method"],
                    "init_args": settings | {"target_modules": row["target_modules"].split()},
                },
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"lr": float(row["lr"]), "weight_decay": float(row["weight_decay"])},
                },
                "lr_scheduler": row["lr_scheduler"],
                "warmup_steps": float(row["warmup"]),
            },
        },
        "data": {"class_path": module, "init_args": data},
    }


if __name__ == "__main__":
    main()
