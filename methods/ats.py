"""ATS: adaptive token sampling, which keeps as many tokens as an image needs.

Source: Fayyaz et al., "Adaptive Token Sampling for Efficient Vision Transformers", ECCV 2022
(arXiv:2111.15667), §3; libs/models/transformers/ats_block.py. `variant="positional"` is
models/ats.py of Haurum et al., ICCVW 2023 (arXiv:2308.04657).
Departures: tokens are selected after attention, which gives the same tokens as selecting rows
inside it, since each row of the output is its own query's, but costs all rows; no smoothing of the
softmax by 1e-6; with `drop_tokens` the empty slots that an image has for its batch's sake are
passed over, so that it is sampled as it is alone (the code takes them for its least significant
tokens, and so does this one without `drop_tokens`); distances are exact, where the positional code
takes them by a matrix product; a largest pick of rank 1 is not lost. Sample points count down from
block to block: the authors' default (all of them at blocks 3 to 11) is nearest at r=1 there.
Costs: a batch is cut to its largest count and shorter samples are padded with empty slots, which
are computed (and counted) though nobody attends to them. Finding that count waits for the device;
under torch.compile and on the meta device there are as many slots as sample points instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bench.core import Plan, Site, register
from bench.core.kinds import Adaptive, Bounded, Compounding
from methods.algorithms.sampling import sample_positional, sample_sorted


def significance(attention_BHN: Tensor, v_BHND: Tensor, per_head: bool = False) -> Tensor:
    """(B,N) attention from the class token times the norm of the value (all heads as one vector).

    `per_head` multiplies each head's attention by the norm of that head's value.
    """
    square_BHN = v_BHND.float().square().sum(-1)
    if per_head:
        return (attention_BHN * square_BHN.sqrt()).sum(1)
    return attention_BHN.sum(1) * square_BHN.sum(1).sqrt()


@register("ats", source="Fayyaz et al., ECCV 2022, §3", url="https://arxiv.org/abs/2111.15667")
@dataclass(frozen=True)
class ATS(Adaptive, Bounded, Compounding):
    """Samples tokens along the curve of their class attention, so that easy images keep fewer.

    The budget is the number of sample points, of which several may fall on one token.
    `drop_tokens=False` leaves a slot for every point, as the authors do while they train.
    """

    variant: Literal["sorted", "positional"] = "sorted"
    drop_tokens: bool = True

    least: ClassVar[int] = 7  # the authors never go below 8 tokens, the class token among them
    needs_anchor: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.7}

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep the distinct picks, in ascending order of significance (positional: position)."""
        fixed, patches = site.split()
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
            order, rank = sample_sorted(score, points, empty if self.drop_tokens else None)
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
