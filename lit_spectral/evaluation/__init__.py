"""Scoring trained models with EleutherAI's lm-evaluation-harness.

Nothing here imports the harness before it is used: that takes seconds.
"""

from lit_spectral.evaluation.benchmarks import BENCHMARKS, Benchmark

__all__ = ["BENCHMARKS", "Benchmark"]
