"""What an update is beside its backbone's weights: measures, a function each, and `lit-spectral analyze`.

All of it follows from ΔW and W₀, a map at a time, with no model and no data; but for `effects`, what it does to the
model on texts, whose measures of hidden states are here too.
"""

from lit_spectral.analysis.magnitude import Magnitude, effective_rank, leading_part, magnitude
from lit_spectral.analysis.states import Moments, linear_cka, procrustes_residual
from lit_spectral.analysis.subspaces import (
    Inside,
    Projections,
    gain_correlation,
    inside,
    projected_norm,
    projections,
    random_basis,
    similarity,
)
from lit_spectral.analysis.weights import Decay, error_curve, exponential_decay, ideal_low_rank, quartiles, width

__all__ = [
    "Decay",
    "Inside",
    "Magnitude",
    "Moments",
    "Projections",
    "effective_rank",
    "error_curve",
    "exponential_decay",
    "gain_correlation",
    "ideal_low_rank",
    "inside",
    "leading_part",
    "linear_cka",
    "magnitude",
    "procrustes_residual",
    "projected_norm",
    "projections",
    "quartiles",
    "random_basis",
    "similarity",
    "width",
]
