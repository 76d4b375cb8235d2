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


def frames_of(tokens: int, grid: tuple[int, int]) -> int:
    """How many frames of this grid the tokens are: 1 of an image, more of a video."""
    return tokens // (grid[0] * grid[1])


def in_time(number: torch.Tensor, frames: int, n: int) -> torch.Tensor:
    """The numbers of a frame, from 0 to `n`, for all frames after each other."""
    return torch.cat([number.flatten() + n * frame for frame in range(frames)])


@register("pool", source="standard baseline")
@dataclass(frozen=True)
class Pool(Reducer):
    """Averages neighbouring patches into the cells of a coarser grid, whatever they show.

    The new grid is the largest that keeps no more tokens than asked for; a cell is the
    size-weighted mean of its patches (adaptive average pooling; a 2 by 2 stride at keep_rate 0.25).
    Of a video each frame is pooled, all alike.
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
        frames = frames_of(tokens, grid)
        rows, columns = coarser(grid, max((tokens - r) // frames, 1))
        return tokens - frames * rows * columns

    def plan(self, site: Site, r: int) -> Plan:
        """The first patch of a cell stays, the others merge into it."""
        n, prefix, device = site.x.shape[1], site.prefix, site.x.device
        rows, columns = site.grid or (1, n - prefix)
        frames = frames_of(n - prefix, (rows, columns))
        to = coarser((rows, columns), rows * columns - r // frames)
        row = torch.arange(rows, device=device) * to[0] // rows
        column = torch.arange(columns, device=device) * to[1] // columns
        cell = in_time(row[:, None] * to[1] + column, frames, to[0] * to[1])
        first = (row.diff(prepend=row[:1] - 1) > 0)[:, None] & (
            column.diff(prepend=column[:1] - 1) > 0
        )
        order = (~first.flatten()).to(torch.int8).argsort(dim=0, stable=True)
        stay, gone = (
            in_time(part, frames, rows * columns) for part in order.tensor_split([to[0] * to[1]])
        )
        keep = torch.cat([torch.arange(prefix, device=device), stay + prefix])
        batch = site.x.shape[0]
        return Plan(
            keep=keep.expand(batch, -1),
            src=(gone + prefix).expand(batch, -1),
            dst=(cell[gone] + prefix).expand(batch, -1),
            grid=to,
        )
