"""What methods ahead of a language model follow: what blocks of the encoder saw, tokens' places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.core import Plan, Reducer
from bench.core.kinds import ProjectorReducer


@dataclass(frozen=True)
class Attended:
    """What the attention of a block saw, of the tokens that remain."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    scale: float | None
    window: Tensor | None = None

    def of(self, keep: Tensor) -> Attended:
        """For the tokens at `keep` (B,M)."""
        rows = keep[:, None, :, None].expand(-1, self.q.shape[1], -1, self.q.shape[3])
        bias = None if self.bias is None else self.bias.gather(-1, keep[:, None, None])
        window = None if self.window is None else self.window.gather(1, keep)
        q, k, v = (t.gather(2, rows) for t in (self.q, self.k, self.v))
        return Attended(q, k, v, bias, self.scale, window)

    def first(self, n: int) -> Attended:
        """For the first `n` tokens: others were appended."""
        bias = None if self.bias is None else self.bias[..., :n]
        window = None if self.window is None else self.window[:, :n]
        tokens = {t: getattr(self, t)[:, :, :n] for t in "qkv"}
        return replace(self, **tokens, bias=bias, window=window)


def frame_by_frame(frames: Sequence[Attended]) -> Attended:
    """What the attention of a block saw of a video, frame after frame, which do not meet."""
    q, k, v = (torch.cat([getattr(frame, t) for frame in frames], 2) for t in "qkv")
    inside = [0 if frame.window is None else frame.window for frame in frames]
    n, device = frames[0].q.shape[2], q.device
    number = torch.arange(len(frames), device=device).repeat_interleave(n)[None] * n
    within = [torch.zeros(1, n, dtype=torch.long, device=device) + window for window in inside]
    return Attended(q, k, v, None, frames[0].scale, number + torch.cat(within, 1))


def blocks_read(reader: Reducer, feature: int, depth: int) -> tuple[int, ...]:
    """The blocks that a method looks at, of an encoder of `depth` whose `feature` makes features.

    A method that is no `ProjectorReducer` can look at the feature block.
    """
    if not isinstance(reader, ProjectorReducer):
        return (feature,)
    return () if reader.reads is None else (feature + reader.reads, *reader.also_reads(depth))


def followed(seen: Mapping[int, Attended], plan: Plan, joins: int = 1) -> dict[int, Attended]:
    """What blocks saw, of the tokens that a plan keeps; nothing where some have no query.

    A token of the plan is `joins` tokens of the blocks, after each other.
    """
    if plan.extra is not None or plan.padded:
        return {}
    part = torch.arange(joins, device=plan.keep.device)
    keep = (plan.keep[..., None] * joins + part).flatten(1)
    return {block: attended.of(keep) for block, attended in seen.items()}


def places(plan: Plan, place: Tensor) -> Tensor:
    """(B,M+E) a kept token stays at its place, a made token takes that of its heaviest input.

    Where that place is kept, or the heaviest input of several, a made token takes the first place
    that no token has a claim to; so does a slot that no token fills.
    """
    keep, filled = plan.keep.clamp(min=0), plan.keep >= 0
    if plan.extra is None and not plan.padded:
        return place.gather(1, keep)
    heavy = keep[:, :0] if plan.extra is None else plan.extra.abs().argmax(-1)
    wanted = torch.zeros_like(place).scatter_add(1, heavy, torch.ones_like(heavy))
    wanted = wanted.scatter_add(1, keep, 2 * filled.long())
    claim = torch.cat([filled, wanted.gather(1, heavy) == 1], 1)
    free = (wanted == 0).to(torch.int8).argsort(dim=1, descending=True, stable=True)
    other = free.gather(1, ((~claim).cumsum(1) - 1).clamp_min(0))
    return place.gather(1, torch.where(claim, torch.cat([keep, heavy], 1), other))
