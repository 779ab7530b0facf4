"""What an update is beside its backbone's weights: measures, a function each, and `lit-spectral analyze`.

Most follows from ΔW and W₀, a map at a time, with no model and no data. What needs both is measured by `effects`, what
an update does to the model on texts, and by losses: which of W₀'s components tasks share (`fisher_overlap`), and which
the backbone needs (`intervened`).
"""

from lit_spectral.analysis.correlation import Correlation, correlation
from lit_spectral.analysis.fisher import component_gradients, fisher_overlap
from lit_spectral.analysis.interventions import intervened
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
    "Correlation",
    "Decay",
    "Inside",
    "Magnitude",
    "Moments",
    "Projections",
    "component_gradients",
    "correlation",
    "effective_rank",
    "error_curve",
    "exponential_decay",
    "fisher_overlap",
    "gain_correlation",
    "ideal_low_rank",
    "inside",
    "intervened",
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
