"""MoRA: a square matrix between fixed maps, of LoRA's size and a higher rank."""

from __future__ import annotations

from dataclasses import dataclass

from lit_spectral.adapters import SquareAdapter
from lit_spectral.adapters.linear import linear_shape
from lit_spectral.adapters.square import square_side
from lit_spectral.methods.base import RankMethod, Site

__all__ = ["MoRA"]


@dataclass
class MoRA(RankMethod):
    """ΔW = P_out M P_in, M square of side ⌊√((in + out)·r)⌋, P its paper's rotations (Jiang et al., 2024).

    Args:
        rank: of the LoRA with about as many parameters as M.
    """

    def check(self, site: Site) -> None:
        """ValueError if M would be larger than the matrix it changes."""
        out_features, in_features = linear_shape(site.layer)
        side = square_side(out_features, in_features, self.rank)
        if side > min(out_features, in_features):
            shape = f"{out_features} x {in_features}"
            raise ValueError(f"rank {self.rank} makes M {side} x {side}, above the {shape} matrix itself")

    def build(self, site: Site) -> SquareAdapter:
        """The adapter for one linear map."""
        return SquareAdapter(site.layer, self.rank, self.dropout)
