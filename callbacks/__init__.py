"""Callbacks: what holds adapters in their sets and the backbone in bfloat16, and shows or writes what comes of it."""

from lit_spectral.callbacks.held_backbone import HeldBackbone
from lit_spectral.callbacks.lm_eval import LMEvalCallback
from lit_spectral.callbacks.lockstep import Lockstep
from lit_spectral.callbacks.logged_curve import LoggedCurve
from lit_spectral.callbacks.prediction_writer import PredictionWriter
from lit_spectral.callbacks.projection import FactorRetraction, FrobeniusBall, SigmaClamp, SpectralBall
from lit_spectral.callbacks.retention_monitor import RetentionMonitor
from lit_spectral.callbacks.run_record import RunRecord
from lit_spectral.callbacks.spectral_monitor import SpectralMonitor
from lit_spectral.callbacks.step_checkpoint import StepCheckpoint

__all__ = [
    "FactorRetraction",
    "FrobeniusBall",
    "HeldBackbone",
    "LMEvalCallback",
    "Lockstep",
    "LoggedCurve",
    "PredictionWriter",
    "RetentionMonitor",
    "RunRecord",
    "SigmaClamp",
    "SpectralBall",
    "SpectralMonitor",
    "StepCheckpoint",
]
