"""The verbs of the command line, a row each. A new one is a row here and a module with `run(args)`."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

__all__ = ["LIGHTNING", "SYNONYMS", "VERBS", "Verb"]


class Verb(NamedTuple):
    """What a verb does, in a line, and the module that does it, which is imported when the verb is used."""

    about: str
    module: str
    function: str = "run"

    def run(self, args: list[str]) -> None:
        """Do it; `args` are those after the verb.

        Raises:
            InputError: arguments that can't be used.
        """
        getattr(import_module(self.module), self.function)(args)


# LightningCLI's own, whose flags are those of trainer, task and data.
LIGHTNING = {
    "fit": "adapt a backbone by a method",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure it on the test split, or by its answers to test sets",
    "predict": "write its predictions, a line a row",
}

VERBS = {
    "quickstart": Verb("LoRA beside FCLoRA on Python's documentation; no download", "lit_spectral.quickstart"),
    "compare": Verb("fit several methods with several seeds; a table and a page", "lit_spectral.comparison.command"),
    "continual": Verb("tasks one after another, and what is left of the earlier", "lit_spectral.continual.command"),
    "edit": Verb("teach new facts, and see what else changes; a page", "lit_spectral.editing.command"),
    "evaluate": Verb("a decoder on tasks of lm-evaluation-harness", "lit_spectral.evaluation.command"),
    "retain": Verb("what a model has kept of its backbone", "lit_spectral.retention.command"),
    "humaneval": Verb("pass@k of completions, each run shut in", "lit_spectral.scoring.command"),
    "spectra": Verb("how large an adapter's changes are, and where they lie", "lit_spectral.updates.show_command"),
    "analyze": Verb("adapters' changes beside their backbone's weights; a page", "lit_spectral.analysis.command"),
    "mend": Verb("repair an adapter after training, without data", "lit_spectral.updates.mend_command"),
    "merge-study": Verb("what becomes of each task when adapters are merged", "lit_spectral.studies.command"),
    "forgetting-study": Verb(
        "which measures of adapters go with what was forgotten", "lit_spectral.studies.forgetting_command"
    ),
    "merge": Verb("several adapters of one backbone made one", "lit_spectral.updates.merge_command"),
    "export": Verb("an adapter as peft, vLLM or llama.cpp load it, or merged", "lit_spectral.updates.export_command"),
    "methods": Verb("the methods that there are, a line each", "lit_spectral.listing", "methods"),
    "tasks": Verb("the tasks", "lit_spectral.listing", "tasks"),
    "data": Verb("the data modules", "lit_spectral.listing", "data"),
    "configs": Verb("the configs that ship with lit-spectral", "lit_spectral.listing", "configs"),
    "config": Verb("a commented YAML to start from", "lit_spectral.starting_config"),
}

# What others call them.
SYNONYMS = {"train": "fit", "eval": "evaluate", "sweep": "compare", "generate": "predict", "analyse": "analyze"}
