"""Average pooling of the patch grid: what any strided layer would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bench.core import Plan, Reducer, Site, Unsupported, register


def coarser(grid: tuple[int, int], cells: int) -> tuple[int, int]:
    """The grid of at most `cells` cells nearest to it in count, and among these in shape."""
    rows, columns = grid
    fits = [(h, min(columns, cells // h)) for h in range(1, rows + 1) if cells // h >= 1]
    return max(fits, key=lambda g: (g[0] * g[1], -abs(g[0] / rows - g[1] / columns)))


@register("pool", source="standard baseline")
@dataclass(frozen=True)
class Pool(Reducer):
    """Averages neighbouring patches into the cells of a coarser grid, whatever they show.

    The new grid is the largest that keeps no more tokens than asked for; a cell is the
    size-weighted mean of its patches (adaptive average pooling; a 2 by 2 stride at keep_rate 0.25).
    Of a video each frame is pooled.
    """

    max_share: ClassVar[float] = 1.0
    towers: ClassVar[tuple[str, ...]] = ("vision", "projector")
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """Down to the nearest full grid.

        Raises:
            Unsupported: the tokens form no grid (text, or another method was here before).
        """
        if grid is None:
            raise Unsupported("method 'pool' needs patches in a grid, and here they form none")
        frames = tokens // (grid[0] * grid[1])
        rows, columns = coarser(grid, max((tokens - r) // frames, 1))
        return tokens - frames * rows * columns

    def plan(self, site: Site, r: int) -> Plan:
        """The first patch of a cell stays, the others merge into it."""
        n, prefix = site.x.shape[1], site.prefix
        rows, columns = site.grid or (1, n - prefix)
        frames = (n - prefix) // (rows * columns)
        to = coarser((rows, columns), rows * columns - r // frames)
        device = site.x.device
        row = torch.arange(rows, device=device) * to[0] // rows
        column = torch.arange(columns, device=device) * to[1] // columns
        cell = (row[:, None] * to[1] + column).flatten()
        first = (row.diff(prepend=row[:1] - 1) > 0)[:, None] & (
            column.diff(prepend=column[:1] - 1) > 0
        )
        first, cells = first.flatten(), to[0] * to[1]
        if frames > 1:
            frame = torch.arange(frames, device=device)[:, None]
            first, cell = first.repeat(frames), (frame * cells + cell).flatten()
        order = (~first).to(torch.int8).argsort(dim=0, stable=True)
        stay, gone = order[: frames * cells], order[frames * cells :]
        keep = torch.cat([torch.arange(prefix, device=device), stay + prefix])
        batch = site.x.shape[0]
        return Plan(
            keep=keep.expand(batch, -1),
            src=(gone + prefix).expand(batch, -1),
            dst=(cell[gone] + prefix).expand(batch, -1),
            grid=to,
        )
