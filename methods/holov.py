"""HoloV: share the budget out among crops of the image, and keep attended tokens in each.

Source: Zou et al., "Don't Just Chase Highlighted Tokens in MLLMs: Revisiting Visual Holistic
Context Retention", NeurIPS 2025 (arXiv:2510.02912); llava/model/utils.py,
qwen-model-HoloV/utils.py.
Departures: without a class token the attention is what a patch receives in the mean, in the order
of the patches (the code for Qwen2.5-VL leaves it in the order of its windows); crops of a
LLaVA-NeXT image are reduced one by one (the code makes one list of all); where an image's tokens
stand on a grid (LLaVA-NeXT, Qwen2-VL) those kept go back to their places, and rows of zeros to free
ones; the share to keep is rounded up, where the code takes a count or rounds down; ties are broken
stably; attention and similarity are float32 in a half-precision model too.
Kept as in the code, and surprising: a crop is a run of patches in reading order, not a window; a
crop's tokens come in the order of their attention; the share of a crop that has fewer tokens comes
back as rows of zeros, which the language model reads as image tokens; the variance of similarity
cancels in a crop's mean score (up to 1e-6), so that attention alone decides; a crop of one token
scores 1000 times lower than others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bench.core import BenchError, Plan, register, take
from bench.core.kinds import ProjectorReducer
from bench.core.site import ProjectorSite
from methods.algorithms.crops import crop_scores, runs, shared_out
from methods.algorithms.ranking import class_attention, precise


@register("holov", source="Zou et al., NeurIPS 2025", url="https://arxiv.org/abs/2510.02912")
@dataclass(frozen=True)
class HoloV(ProjectorReducer):
    """Shares the budget out among crops by their attention, and keeps a crop's most attended.

    By default there are 16 `crops`; without a class token as many as 1024 / 576 of the tokens to
    each one kept, as the authors have it for Qwen2.5-VL. `alpha` weighs the variance of similarity.
    """

    crops: int | None = None
    alpha: float = 0.09

    before: ClassVar[bool] = False
    newlines: ClassVar[bool] = False
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 1 / 9}

    def __post_init__(self) -> None:
        """Refuse a number of crops that makes no sense."""
        if self.crops is not None and self.crops < 1:
            raise BenchError("holov: crops must be at least 1")

    def plan(self, site: ProjectorSite, r: int) -> Plan:  # type: ignore[override]
        """Keep the tokens crop by crop; rows of zeros fill what a crop could not take."""
        fixed, patches = site.split()
        n = patches.shape[1]
        seen = precise(site).received() if site.anchor is None else class_attention(site)
        number = 16 if site.anchor is not None else max(1, int(1024 / 576 * n / (n - r)))
        at, there = runs(n, self.crops or number, patches.device)
        attention = seen.gather(1, patches)[:, at].masked_fill(~there, -torch.inf)
        rank = attention.argsort(dim=2, descending=True, stable=True).argsort(2)
        x = take(site.x, patches).float()[:, at]
        score = crop_scores(x, attention.masked_fill(~there, 0), there, self.alpha)
        share = shared_out(score, n - r)[..., None]
        place = torch.arange(at.shape[1], device=at.device)
        rank = torch.where(share < there.sum(1, keepdim=True), rank, place)
        order = torch.arange(len(at), device=at.device)[:, None] * at.shape[1] + rank
        order = order.masked_fill(~there | (rank >= share), at.numel()).flatten(1)
        order, best = order.sort(1)
        filled = (order < at.numel())[:, : n - r]
        keep = patches.gather(1, at.flatten()[best[:, : n - r]])
        size = site.size[..., 0].gather(1, keep).masked_fill(~filled, 1)
        size = torch.cat([take(site.size, fixed), size[..., None]], 1)
        keep = torch.cat([fixed, keep.masked_fill(~filled, -1)], 1)
        return Plan(keep, size=size, padded=True)
