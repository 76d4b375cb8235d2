"""Random pruning: the baseline that a method has to beat to mean anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bench.core import Plan, Site, register
from bench.core.kinds import Stochastic

# a multiplicative hash of 31 bits: exact in int64, so every device and torch.compile draw the same
_A, _B, _MASK = 1103515245, 1935289751, 2**31 - 1


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
        B, n, _ = site.x.shape
        # no batch of one seed draws as a batch of another: the seeds' spread would be too small
        key = _key(self.seed, site.draw, site.layer)
        if site.only_prefix:  # place * _A + key, by the place among the tokens that can go
            first = key + (1 - site.prefix) * _A
            draw = torch.arange(first, first + n * _A, _A, device=site.x.device)[None]
        else:
            draw = (~site.protect).cumsum(1) * _A + key
        draw = draw & _MASK
        draw = ((draw ^ (draw >> 15)) * _B) & _MASK
        if site.only_prefix:
            draw[:, : site.prefix].fill_(_MASK + 1)
        else:
            draw = draw.masked_fill(site.protect, _MASK + 1)
        keep = draw.argsort(dim=1, descending=True, stable=True)[:, : n - r]
        return Plan(keep.sort(1).values.expand(B, -1))


def _key(*numbers: int) -> int:
    """31 bits in which every bit of the numbers has a part."""
    key = 0
    for number in numbers:
        for part in (number & _MASK, number >> 31 & _MASK):
            key = (key ^ part) * _A & _MASK
            key = (key ^ key >> 15) * _B & _MASK
    return key ^ key >> 16
