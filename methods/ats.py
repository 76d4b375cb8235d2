"""ATS: adaptive token sampling, which keeps as many tokens as an image needs.

Source: Fayyaz et al., "Adaptive Token Sampling for Efficient Vision Transformers", ECCV 2022
(arXiv:2111.15667), §3; libs/models/transformers/ats_block.py. `variant="positional"` is
models/ats.py of Haurum et al., ICCVW 2023 (arXiv:2308.04657).
Departures: tokens are selected after attention, which gives the same tokens as selecting rows
inside it, since each row of the output is its own query's, but costs all rows; no smoothing of the
softmax by 1e-6; in a batch, an image that has no empty slots is sampled as if it had (the authors'
drop_tokens=False), so that its batch does not matter; distances are exact, where the positional
code takes them by a matrix product; a largest pick of rank 1 is not lost. Sample points count down
from block to block: the authors' default (all of them at blocks 3 to 11) is nearest at r=1 there.
Costs: a batch is cut to its largest count and shorter samples are padded with empty slots, which
are computed (and counted) though nobody attends to them. Finding that count waits for the device;
under torch.compile and on the meta device there are as many slots as sample points instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bench.core import Plan, Reducer, Site
from bench.registry import register
from methods.dpc_knn import split

_MINIMUM = 7  # the authors never go below 8 tokens, the class token among them


def significance(attention_BHN: Tensor, v_BHND: Tensor, per_head: bool = False) -> Tensor:
    """(B,N) attention from the class token times the norm of the value (all heads as one vector).

    `per_head` multiplies each head's attention by the norm of that head's value.
    """
    square_BHN = v_BHND.float().square().sum(-1)
    if per_head:
        return (attention_BHN * square_BHN.sqrt()).sum(1)
    return attention_BHN.sum(1) * square_BHN.sum(1).sqrt()


def sample_sorted(score_BN: Tensor, points: int, whole: bool = True) -> tuple[Tensor, Tensor]:
    """Inverse transform sampling along tokens of ascending score, at evenly spaced points.

    Args:
        score_BN: significance without the protected tokens; 0 in empty slots.
        points: how many points (`n_ref_tokens - 1`); tokens beyond that many are out of reach,
            the least significant first.
        whole: no token was removed before; else the curve starts at an empty slot's zero.

    Returns:
        (B,N) tokens in ascending order, and (B,points) the rank in it that each point picks.
    """
    N = score_BN.shape[1]
    score, order = score_BN.sort(dim=1, stable=True)
    tiny = torch.finfo(score.dtype).tiny
    cdf = (score / score.sum(1, keepdim=True).clamp_min(tiny)).cumsum(1)
    if whole:
        cdf = cdf - cdf[:, :1]
    cdf = cdf / cdf[:, -1:].clamp_min(tiny)
    start = cdf.masked_fill(cdf == 0, 1.0).amin(1, keepdim=True)
    even = torch.linspace(0, 1, points, device=score.device, dtype=score.dtype)
    beyond = max(N - points, 0)
    return order, nearest(start + even * (1 - start), cdf[:, beyond:]) + beyond


def sample_positional(
    score_BN: Tensor, sample_count: int, empty_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Inverse transform sampling along positions, at the middles of `sample_count` equal steps.

    The last middle is left out, except where rounding of the step lets it in, as in the code.
    Returns as `sample_sorted`, the order being that of the positions.
    """
    K = sample_count
    cdf = (score_BN / (score_BN.sum(1, keepdim=True) + 1e-6)).cumsum(1)
    if empty_BN is not None:
        cdf = cdf + 0.1 * empty_BN
    middles = torch.arange(
        1 / (2 * K), (2 * K - 1) / (2 * K), 2 / (2 * K), device=cdf.device, dtype=cdf.dtype
    )
    order = torch.arange(cdf.shape[1], device=cdf.device).expand_as(cdf)
    return order, nearest(middles.expand(len(cdf), -1), cdf)


def nearest(point_BK: Tensor, curve_BN: Tensor) -> Tensor:
    """(B,K) where the curve comes nearest to each point, the first place on ties."""
    return (point_BK[..., None] - curve_BN[:, None]).abs().argmin(-1)


@register("ats", source="Fayyaz et al., ECCV 2022, §3", url="https://arxiv.org/abs/2111.15667")
@dataclass(frozen=True)
class ATS(Reducer):
    """Samples tokens along the curve of their class attention, so that easy images keep fewer.

    The budget is the number of sample points, of which several may fall on one token.
    `drop_tokens=False` leaves a slot for every point, as the authors do while they train.
    """

    variant: Literal["sorted", "positional"] = "sorted"
    drop_tokens: bool = True

    acts: ClassVar[str] = "chosen layers, after attention"
    max_share: ClassVar[float] = 1.0
    needs_anchor: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}
    keeps: ClassVar[str] = "initial"

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """Down to the authors' 7 sample points, the class token making 8."""
        return max(min(r, tokens - _MINIMUM), 0)

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep the distinct picks, in ascending order of significance (positional: position)."""
        fixed, patches = split(site.protect, site.n_protected)
        points, positional = patches.shape[1] - r, self.variant == "positional"
        assert site.anchor is not None
        empty = site.size[..., 0] == 0
        attention = site.attention(site.anchor)[:, :, 0].float().masked_fill(empty[:, None], 0.0)
        attention = attention / attention.sum(-1, keepdim=True)
        score = significance(attention, site.v, positional).gather(1, patches)
        empty = empty.gather(1, patches)
        if positional:
            order, rank = sample_positional(score, points + 1, empty)
        else:
            order, rank = sample_sorted(score, points, site.whole)
        picked = torch.zeros_like(empty).scatter(1, rank, True)
        first = (~picked).to(torch.int8).argsort(dim=1, stable=True)
        count = picked.sum(1, keepdim=True)
        slots, padded = self._slots(count, min(rank.shape[1], patches.shape[1]))
        keep = patches.gather(1, order.gather(1, first[:, :slots]))
        gap = torch.arange(slots, device=keep.device) >= count
        return Plan(torch.cat([fixed, keep.masked_fill(gap, -1)], 1), padded=padded)

    def _slots(self, count: Tensor, most: int) -> tuple[int, bool]:
        """How many slots a sample gets, and whether some stay empty."""
        if torch.compiler.is_compiling() or not self.drop_tokens:
            return most, True
        if count.is_meta:
            return most, False
        low, high = torch.stack(count.aminmax()).tolist()
        return high, low < high
