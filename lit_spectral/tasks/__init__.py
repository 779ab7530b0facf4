"""LightningModules: a backbone, a method, a kind of problem."""

from lit_spectral.tasks.anchor import Anchor
from lit_spectral.tasks.base import Task
from lit_spectral.tasks.causal_lm import CausalLM
from lit_spectral.tasks.masked_lm import MaskedLM
from lit_spectral.tasks.question_answering import QuestionAnswering
from lit_spectral.tasks.sequence_classification import SequenceClassification

__all__ = ["Anchor", "CausalLM", "MaskedLM", "QuestionAnswering", "SequenceClassification", "Task"]
