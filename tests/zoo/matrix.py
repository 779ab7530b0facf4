"""docs/architectures.md, written from the zoo: `PYTHONPATH=tests python -m zoo.matrix`."""

from __future__ import annotations

from pathlib import Path

from lit_spectral.adapters import find_targets
from lit_spectral.adapters.targets import left_out
from lit_spectral.reading import Reading
from zoo.models import DECODERS, MODELS, TASKS, has_task, make

__all__ = ["FILE", "matrix"]

FILE = Path(__file__).parents[2] / "docs" / "architectures.md"

HEAD = """# Architectures

What the tests try, on tiny random models (`tests/zoo/models.py`; a line each). Of each architecture under a method:
the adapted model starts as its backbone, every adapter is reached by the gradient, folding changes nothing and is
undone to the bit, a checkpoint brings the model back, gradient checkpointing (where transformers has it) changes no
gradient, and decoders answer a prompt in a batch as alone. In each of its tasks FCLoRA trains with its defaults, and
the validation loss is the same in batches of 1, 5 and 33 rows, with tokenizers that pad on the left, with another
padding token than the config's, or with none. `make test` tries each architecture under one of LoRA, FCLoRA and
HiRA, `make slow`, which CI runs too, each under every kind of adapter.

*Adapted by default* are the linear maps of the blocks with which a model reads text; of decoders with gated
blocks all but the gates and the maps that close attention, as in HiRA, MiLoRA and FCLoRA. What a block holds
beside them is logged when a run starts. Experts' stacks of matrices and XLNet's attention are no linear maps:
they stay as they are, and `target_modules` can't name them.

| architecture | tasks | adapted by default | left out of the blocks |
| --- | --- | --- | --- |
"""
TAIL = """
Refused, each in one line: quantised maps other than bitsandbytes' (docs/scaling.md), and others that don't compute
W x + b from floating-point weights;
target modules that text does not reach, such as a vision tower; rows whose result depends on the padding beside
them, which is what prompt and P-tuning of peft do to the classes of decoders (one row at a time goes); RoBERTa
and XLM-R whose config names no padding token, and T5 and BART where the end of a text pads it; LoRA and DoRA of
peft on Mamba's out_proj (peft's own refusal).
"""


def matrix() -> str:
    """The page."""
    rows = []
    for name in MODELS:
        tasks = [task for task in TASKS if has_task(name, task)]
        encoder = make(name, "CausalLM" if name in DECODERS else tasks[0]).base_model
        reading = Reading(encoder)
        targets = find_targets(encoder, None, reading)
        endings = dict.fromkeys(path.rpartition(".")[2] for path in targets)
        rest = left_out(encoder, targets, [], reading).partition("; the targets")[0]
        cells = (name, ", ".join(tasks), ", ".join(endings), rest or "–")
        rows.append(f"| {' | '.join(cells)} |")
    return HEAD + "\n".join(rows) + "\n" + TAIL


if __name__ == "__main__":
    FILE.write_text(matrix(), encoding="utf-8")
