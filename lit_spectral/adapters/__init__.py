"""What is put on a linear map: one small file for each kind of ΔW."""

from lit_spectral.adapters.attachment import (
    adapter_names,
    adapters,
    attach,
    detach,
    find_targets,
    fold,
    trained_state,
    unfold,
)
from lit_spectral.adapters.base import Adapter, Bounded, Factors
from lit_spectral.adapters.dense import DenseAdapter
from lit_spectral.adapters.difference import DifferenceAdapter, SVDDifferenceAdapter
from lit_spectral.adapters.low_rank import FactoredAdapter, LowRankAdapter
from lit_spectral.adapters.svd import SVDAdapter

__all__ = [
    "Adapter",
    "Bounded",
    "DenseAdapter",
    "DifferenceAdapter",
    "FactoredAdapter",
    "Factors",
    "LowRankAdapter",
    "SVDAdapter",
    "SVDDifferenceAdapter",
    "adapter_names",
    "adapters",
    "attach",
    "detach",
    "find_targets",
    "fold",
    "trained_state",
    "unfold",
]
