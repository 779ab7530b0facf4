"""Spectra: bounded, computed in part, and kept on disk. Nothing here knows adapters, methods or tasks.

What is exported is what everyone speaks of; the rest is named by its module, since some take scipy.
"""

from lit_spectral.spectra.linalg import Part, SingularTriplets

__all__ = ["Part", "SingularTriplets"]
