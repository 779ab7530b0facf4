"""Callbacks: what holds adapters in their sets, and what shows their spectra."""

from lit_spectral.callbacks.projection import FactorRetraction, SigmaClamp, SpectralBall
from lit_spectral.callbacks.spectral_monitor import SpectralMonitor

__all__ = ["FactorRetraction", "SigmaClamp", "SpectralBall", "SpectralMonitor"]
