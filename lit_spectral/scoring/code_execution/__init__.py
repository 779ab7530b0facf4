"""Running code that a model wrote, and counting what passed."""

from lit_spectral.scoring.code_execution.estimator import pass_at_k
from lit_spectral.scoring.code_execution.sandbox import Outcome, available, run

__all__ = ["Outcome", "available", "pass_at_k", "run"]
