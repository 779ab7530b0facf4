"""Which task a model of transformers is of."""

from __future__ import annotations

from lit_spectral.tasks.base import Task
from lit_spectral.tasks.causal_lm import CausalLM
from lit_spectral.tasks.masked_lm import MaskedLM
from lit_spectral.tasks.question_answering import QuestionAnswering
from lit_spectral.tasks.sequence_classification import SequenceClassification

__all__ = ["MODELS", "task_of_model"]

# From a task to what transformers calls the models that it is of.
MODELS: dict[type[Task], str] = {
    SequenceClassification: "SEQUENCE_CLASSIFICATION",
    QuestionAnswering: "QUESTION_ANSWERING",
    MaskedLM: "MASKED_LM",
    CausalLM: "CAUSAL_LM",
}


def task_of_model(name: str) -> type[Task] | None:
    """The task for models of a class, by the class's name; None where there is none."""
    from transformers.models.auto import modeling_auto

    kinds = (k for k, of in MODELS.items() if name in getattr(modeling_auto, f"MODEL_FOR_{of}_MAPPING_NAMES").values())
    return next(kinds, None)
