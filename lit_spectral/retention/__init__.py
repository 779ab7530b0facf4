"""What a backbone knew and an adapted model still knows."""

from lit_spectral.retention.base_model import base_model
from lit_spectral.retention.measures import token_scores
from lit_spectral.retention.retention import Retention

__all__ = ["Retention", "base_model", "token_scores"]
