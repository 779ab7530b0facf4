"""Callbacks: what holds adapters in their sets, what shows their spectra, and what scores the model on the way."""

from lit_spectral.callbacks.lm_eval import LMEvalCallback
from lit_spectral.callbacks.projection import FactorRetraction, SigmaClamp, SpectralBall
from lit_spectral.callbacks.retention_monitor import RetentionMonitor
from lit_spectral.callbacks.spectral_monitor import SpectralMonitor

__all__ = ["FactorRetraction", "LMEvalCallback", "RetentionMonitor", "SigmaClamp", "SpectralBall", "SpectralMonitor"]
