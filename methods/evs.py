"""EVS: keep the tokens of a video that differ most from the same place one frame before.

Source: Bagrov et al., "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster
VLM Inference", 2025 (arXiv:2510.14624), as it runs in vLLM; vllm/multimodal/evs.py.
Departures: the model's own positions go on (the code gives the words behind a video positions of
its own, which may overlap the video's); a share of tokens is rounded down, of the share to keep
itself, where the code rounds 1 - 0.9 down to 99 of 1,000; similarity is float32 in a half-precision
model too.
Kept as in the code, and unlike the paper: tokens behind the projector are compared, not pixels; all
frames share one ranking; the first frame stays complete, as part of the budget.
Shapes: B videos, F frames, P tokens of a frame, N = F * P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import Plan, register
from bench.core.kinds import VideoReducer
from bench.core.site import ProjectorSite
from methods.algorithms.ranking import keep_highest
from methods.algorithms.video import by_frame, likeness

_FIRST = 255.0  # what a token of the first frame is told to differ by, as in the code


def changes(x_BFPC: Tensor) -> Tensor:
    """(B,N) 1 - cosine with the token at the same place one frame before."""
    unlike_BFP = 1 - likeness(x_BFPC[:, 1:], x_BFPC[:, :-1])
    first_BFP = torch.full_like(x_BFPC[:, :1, :, 0], _FIRST)
    return torch.cat([first_BFP, unlike_BFP], 1).flatten(1)


@register("evs", source="Bagrov et al., 2025", url="https://arxiv.org/abs/2510.14624")
@dataclass(frozen=True)
class EVS(VideoReducer):
    """Keeps a video's first frame, and of the others what changed most since the frame before."""

    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.3}

    def kept(self, rate: float, tokens: int, fixed: int) -> int:
        """The share to keep is rounded down."""
        return int(rate * tokens)

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """The first frame stays."""
        rows, columns = grid or (1, self.least)
        return super().feasible(min(r, tokens - rows * columns), tokens, grid)

    def plan(self, site: ProjectorSite, r: int) -> Plan:  # type: ignore[override]
        """Keep what changed most, in order of time; of equal changes the earlier."""
        change_BN = changes(by_frame(site))
        fixed, tokens = site.split()
        score = torch.zeros_like(site.size[..., 0]).scatter(1, tokens, change_BN)
        return keep_highest(score, site, r)
