"""What is put on a linear map: one small file for each kind of ΔW."""

from lit_spectral.adapters.attachment import (
    adapters,
    attach,
    detach,
    fold,
    named_changes,
    named_wrappers,
    packed,
    refuse_folded,
    trained_state,
    unfold,
)
from lit_spectral.adapters.base import Adapter, Bounded, Budget, Change, Confined, Factors, Wrapper
from lit_spectral.adapters.bottleneck import BottleneckAdapter
from lit_spectral.adapters.dense import DenseAdapter
from lit_spectral.adapters.difference import DifferenceAdapter, SVDDifferenceAdapter
from lit_spectral.adapters.hadamard import HadamardAdapter, HadamardLowRankAdapter
from lit_spectral.adapters.low_rank import FactoredAdapter, LowRankAdapter
from lit_spectral.adapters.square import SquareAdapter
from lit_spectral.adapters.stiefel import EqualGainAdapter, StiefelAdapter
from lit_spectral.adapters.svd import SVDAdapter
from lit_spectral.adapters.targets import find_block_ends, find_targets
from lit_spectral.adapters.two_channel import TwoChannelAdapter

__all__ = [
    "Adapter",
    "BottleneckAdapter",
    "Bounded",
    "Budget",
    "Change",
    "Confined",
    "DenseAdapter",
    "DifferenceAdapter",
    "EqualGainAdapter",
    "FactoredAdapter",
    "Factors",
    "HadamardAdapter",
    "HadamardLowRankAdapter",
    "LowRankAdapter",
    "SVDAdapter",
    "SVDDifferenceAdapter",
    "SquareAdapter",
    "StiefelAdapter",
    "TwoChannelAdapter",
    "Wrapper",
    "adapters",
    "attach",
    "detach",
    "find_block_ends",
    "find_targets",
    "fold",
    "named_changes",
    "named_wrappers",
    "packed",
    "refuse_folded",
    "trained_state",
    "unfold",
]
