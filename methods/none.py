"""The unreduced model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.core import Plan, Reducer, Site, register


@register("none", source="the model as its authors published it", acts="nowhere")
@dataclass(frozen=True)
class Unreduced(Reducer):
    """The model as it is, which every other row is measured against."""

    budget: ClassVar[dict[str, Any]] = {"r": 0}
    towers: ClassVar[tuple[str, ...]] = ("vision", "text", "projector", "language")

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """It never removes a token."""
        return 0

    def plan(self, site: Site, r: int) -> Plan:
        """Never asked, since nothing is removed; keeps everything."""
        n = site.x.shape[1]
        return Plan(keep=site.protect.new_ones(site.protect.shape).cumsum(1)[:, :n] - 1)
