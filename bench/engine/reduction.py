"""A method at work in a tower, and how many tokens it removes where."""

from __future__ import annotations

from dataclasses import dataclass

from bench.core import Reducer, Schedule


@dataclass(frozen=True)
class Reduction:
    """A method at work in a tower, and how many tokens it removes where."""

    reducer: Reducer
    schedule: Schedule

    def count(
        self, layer: int, depth: int, tokens: int, initial: int, grid: tuple[int, int] | None
    ) -> int:
        """How many of `tokens` removable ones go: as many as scheduled, if the method can."""
        wanted = self.schedule(layer, depth, tokens, initial)
        return self.reducer.feasible(wanted, tokens, grid) if wanted > 0 else 0

    def still(
        self, layer: int, depth: int, tokens: int, initial: int, grid: tuple[int, int] | None
    ) -> tuple[int, int]:
        """How many of `tokens` go at this layer and later, and how many layers away the last is."""
        gone, last = 0, layer
        for later in range(layer, depth):
            r = self.count(later, depth, tokens - gone, initial, grid)
            gone, last = gone + r, later if r else last
        return gone, last - layer
