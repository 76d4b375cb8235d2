"""DyCoke: thin every second frame of a video where it repeats the frame before.

Source: Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models",
CVPR 2025 (arXiv:2411.15024), §3.2; llava/model/llava_arch.py (`dycole_ttm`).
Its second stage, at each new token, is `dycoke-decode`.
Departures: frames have the model's own number of tokens, where the code counts on 196; how
many tokens of a thinned frame stay follows from the budget unless `merging_ratio` gives it; fewer
than five frames do not crash; similarity is float32 in a half-precision model too; ties are broken
stably.
Kept as in the code, and surprising: redundant tokens are dropped, not merged as in the paper; those
that stay of a thinned frame are in the order of their similarity; the last of an odd number of
frames is lost, and of the last four frames the third stays complete. `mended` keeps the lost frame,
and thins that third one.
Shapes: B videos, F frames, P tokens of a frame, K kept of a thinned frame, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import BenchError, Plan, register
from bench.core.kinds import VideoReducer
from bench.core.site import ProjectorSite
from methods.algorithms.video import by_frame, likeness


def compared_with(frames: int, mended: bool = False) -> Iterator[int | None]:
    """Of each frame that stays: the frame that it is thinned against; None where it is complete."""
    last = frames if mended else frames - frames % 2
    for t in range(last):
        if t % 2:
            yield t - 1
        else:
            thinned = t % 4 == 2 and (mended or t < frames - 2)
            yield t - 2 if thinned else None


@register("dycoke", source="Tao et al., CVPR 2025, §3.2", url="https://arxiv.org/abs/2411.15024")
@dataclass(frozen=True)
class DyCoke(VideoReducer):
    """Keeps every fourth frame of a video, and of the others what is least like an earlier one.

    `merging_ratio` is the share of a thinned frame that goes (the authors' is 0.7); without it the
    budget decides.
    """

    merging_ratio: float | None = None
    mended: bool = False

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if self.merging_ratio is not None and not 0 <= self.merging_ratio < 1:
            raise BenchError("dycoke: merging_ratio must be a share in [0, 1)")

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """The removal nearest to `r` by which all thinned frames keep equally many."""
        if grid is None:
            return super().feasible(r, tokens, grid)
        size = grid[0] * grid[1]
        frames = list(compared_with(tokens // size, self.mended))
        complete, kept = frames.count(None), self._kept_of_thinned(tokens - r, size, frames)
        return tokens - complete * size - (len(frames) - complete) * kept

    def _kept_of_thinned(self, kept: int, size: int, frames: list[int | None]) -> int:
        """How many tokens of a thinned frame stay where `kept` do of the video."""
        if self.merging_ratio is not None:
            return int((1 - self.merging_ratio) * size)
        complete = frames.count(None)
        thinned = max(len(frames) - complete, 1)
        return min(max(round((kept - complete * size) / thinned), 0), size)

    def plan(self, site: ProjectorSite, r: int) -> Plan:  # type: ignore[override]
        """Keep frames in order of time, a thinned one's tokens from the least alike on."""
        x_BFPC = by_frame(site)
        fixed, tokens = site.split()
        size, frames = x_BFPC.shape[2], list(compared_with(x_BFPC.shape[1], self.mended))
        count = self._kept_of_thinned(tokens.shape[1] - r, size, frames)
        kept = [fixed]
        for t, (frame, earlier) in enumerate(zip(tokens.split(size, 1), frames, strict=False)):
            if earlier is None:
                kept.append(frame)
            else:
                kept.append(frame.gather(1, _least_alike(x_BFPC, t, earlier, count)))
        return Plan(torch.cat(kept, 1))


def _least_alike(x_BFPC: Tensor, t: int, earlier: int, count: int) -> Tensor:
    """(B,K) places of the tokens of frame t that are least like those of an earlier one."""
    alike_BP = likeness(x_BFPC[:, t], x_BFPC[:, earlier])
    return alike_BP.argsort(dim=1, stable=True)[:, :count]
