"""Random pruning: the baseline that a method has to beat to mean anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.core import Plan, Site, register
from bench.core.kinds import Stochastic

# a 31-bit multiplicative hash: exact in int64, so every device and torch.compile draw the same
_A, _B, _C, _MOD = 1103515245, 40503, 2654435761, 2**31
_BATCH = 1_000_003


@register("random", source="standard baseline")
@dataclass(frozen=True)
class Random(Stochastic):
    """Drops tokens at seeded random positions, the same ones for every sample of a batch.

    Departures: none; a draw depends on seed, layer and place among the tokens that can go, not on
    the other samples or the padding. In an accuracy pass each batch has a draw of its own.
    """

    seed: int = 0

    max_share: ClassVar[float] = 1.0
    towers: ClassVar[tuple[str, ...]] = ("vision", "text", "projector", "language")
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}

    def plan(self, site: Site, r: int) -> Plan:
        """Keep the N - r tokens of highest random rank, in their order."""
        n = site.x.shape[1]
        draw = (~site.protect).cumsum(1) + 1  # by its rank among those that can go
        # no batch of one seed draws as a batch of another: the seeds' spread would be too small
        key = (self.seed * 8191 + site.draw * _BATCH + site.layer + 1) * _C % _MOD
        for _ in range(3):
            draw = ((draw ^ (draw >> 13)) * _A + key * _B) % _MOD
        rank = draw.masked_fill(site.protect, _MOD)
        keep = rank.argsort(dim=1, descending=True, stable=True)[:, : n - r]
        return Plan(keep.sort(1).values)
