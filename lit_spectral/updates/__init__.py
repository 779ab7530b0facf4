"""What training leaves of a backbone, and what can be done with it: read, merge, mend, export. Knows no models."""

from lit_spectral.updates.delta import Delta, Pair, Truncated
from lit_spectral.updates.update import Update

__all__ = ["Delta", "Pair", "Truncated", "Update"]
