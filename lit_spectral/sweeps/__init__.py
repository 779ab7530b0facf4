"""A repair at many values, put on a live model and measured: the free baseline of every constraint in training."""

from lit_spectral.sweeps.sweep import Row, sweep
from lit_spectral.sweeps.validation import validate_each, validated
from lit_spectral.sweeps.values import Sweep, add_sweeps, sweeps_of

__all__ = ["Row", "Sweep", "add_sweeps", "sweep", "sweeps_of", "validate_each", "validated"]
