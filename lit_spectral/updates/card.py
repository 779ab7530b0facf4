"""The model card of a folder that is taken away: what it is, how it came about, what was cut off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_spectral.updates.sizes import spectral_norms
from lit_spectral.updates.update import Update

__all__ = ["write_card"]

# How to load either, by the form of the folder.
_USE = {
    "peft": "from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(backbone, folder)",
    "merged": "from transformers import {auto}\n\nmodel = {auto}.from_pretrained(folder)",
}
_AUTO = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "LM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
}


def write_card(update: Update, folder: Path, to: str, errors: Mapping[str, float]) -> None:
    """Write `README.md`: the origin's entries as they are, the largest ‖ΔW‖₂ of thin changes, errors by layer."""
    architecture = str(update.origin.get("architecture", ""))
    auto = next((kind for end, kind in _AUTO.items() if architecture.endswith(end)), "AutoModel")
    said = [*_front_matter(update, to), f"# {_title(update)}", ""]
    rows = {"backbone": update.backbone or "not known", **update.origin, **_sizes(update)}
    said += ["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()), ""]
    if errors:
        said += ["What was cut off of each change, ‖rest‖_F / ‖ΔW‖_F:", "", "| map | error |", "|---|---|"]
        said += [f"| {path} | {error:.3g} |" for path, error in errors.items()] + [""]
    said += ["```python", _USE[to].format(auto=auto), "```", ""]
    (folder / "README.md").write_text("\n".join(said), encoding="utf-8")


def _front_matter(update: Update, to: str) -> list[str]:
    # A hub refuses a card whose base_model is no id of its own.
    known = update.backbone.count("/") <= 1 and update.backbone and not Path(update.backbone).exists()
    base = [f"base_model: {json.dumps(update.backbone)}"] if known else []
    library = "peft" if to == "peft" else "transformers"
    return [
        "---",
        *base,
        f"library_name: {library}",
        "tags:",
        "- lit-spectral",
        *["- lora"] * (to == "peft"),
        "---",
        "",
    ]


def _title(update: Update) -> str:
    method = update.origin.get("method", "An adapter")
    named = method.get("name", "An adapter") if isinstance(method, Mapping) else method
    return f"{named} on {Path(update.backbone).name or 'its backbone'}"


def _sizes(update: Update) -> dict[str, str]:
    pairs = {path: delta.factors for path, delta in update.changes.items() if delta.is_thin and delta.factors}
    if not pairs:
        return {}
    norms = spectral_norms(pairs)
    largest = max(norms, key=lambda path: norms[path])
    ranks = sorted({len(pair.right) for pair in pairs.values()})
    return {
        "largest ‖ΔW‖₂": f"{norms[largest]:.4g}, of {largest}",
        "rank": ", ".join(map(str, ranks)),
    }


def _cell(value: Any) -> str:
    """One line of a table, whatever the value."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return " ".join(text.split()).replace("|", "\\|")
