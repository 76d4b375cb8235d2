"""FlowCut: patches leave the image encoder block by block, by a score that runs along.

Source: Tong et al., "FlowCut: Rethinking Redundancy via Information Flow for Efficient
Vision-Language Models", NeurIPS 2025 (arXiv:2505.19536); flowcut/modeling_clip_flowcut.py,
flowcut/utils_flowcut.py. Its second stage is `flowcut-language`.
Departures: each image of a batch loses as many patches as it needs, shorter ones getting empty
slots, where the code lets the largest share of the batch decide (`over_batch=True`); an attention
of 0 adds nothing to the entropy (the code fails); ties are broken stably; scores are float32 in a
half-precision model too; the rules of the authors' Qwen2-VL differ and are left out. The last cut
is by default ahead of the last block but one, which makes the features of LLaVA.
Kept as in the code, and surprising: dot products of values are not scaled.
Without values (on the meta device) all patches stay up to the last cut.
Shapes: B images, N tokens, P patches, H heads, D channels a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import Plan, Site, Unsupported, register
from bench.core.kinds import Bounded, Gradual
from bench.core.site import GradualSite
from methods.algorithms.ranking import class_attention, ranked


@register(
    "flowcut",
    source="Tong et al., NeurIPS 2025",
    url="https://arxiv.org/abs/2505.19536",
    acts="every second block, before the block",
)
@dataclass(frozen=True)
class FlowCut(Gradual, Bounded):
    """Drops patches of low class attention, value likeness and value size, ever more of them.

    The score is the mean of the block's and of the earlier ones'. How many go early depends on the
    entropy of the class attention; the budget is what remains after the last cut. For images in
    crops the authors go on in the language model with `flowcut-language`.
    """

    over_batch: bool = False

    needs_anchor: ClassVar[bool] = True
    every: ClassVar[int] = 2
    towers: ClassVar[tuple[str, ...]] = ("vision",)
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 128 / 576, "layers": (-2,)}

    @torch.no_grad()
    def rate(self, site: Site, running: Tensor | None) -> Tensor:
        """(B,N) half of the score so far, and half of the latest block's; protected tokens 0."""
        assert site.anchor is not None
        v_BHND, sample_B = site.v.float(), torch.arange(len(site.v), device=site.v.device)
        v_BH1D = v_BHND[sample_B, :, site.anchor][:, :, None]
        like_BHN = (v_BH1D @ v_BHND.transpose(2, 3))[:, :, 0]
        like_BHN = like_BHN.masked_fill((site.size[..., 0] == 0)[:, None], -torch.inf)
        flow_BN = _shares(class_attention(site), site) + _shares(like_BHN.softmax(-1).mean(1), site)
        score_BN = flow_BN * v_BHND.mean(1).abs().sum(-1)
        return score_BN if running is None else 0.5 * running + 0.5 * score_BN

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """The protected tokens, then the patches of the highest running score in their order."""
        if not isinstance(site, GradualSite):
            raise Unsupported(
                "method 'flowcut' needs a score that runs through an encoder's blocks"
            )
        order_BN = ranked(site.running.masked_fill(site.size[..., 0] == 0, -1.0), site.protect)
        fixed, most = site.n_protected, site.x.shape[1] - site.n_protected
        if not site.remaining:
            return Plan(order_BN[:, : fixed + most - r].sort(1).values)
        left_B1 = self._left(site, most - r)
        if site.x.is_meta:  # which has its cost, and no value
            return Plan(order_BN.sort(1).values)
        fewest, width = torch.stack(left_B1.aminmax()).tolist()  # waits for a GPU
        gap_BP = torch.arange(width, device=left_B1.device) >= left_B1
        first_BP = order_BN[:, fixed : fixed + width].masked_fill(gap_BP, most + fixed)
        keep_BP = first_BP.sort(1).values
        keep_BP = keep_BP.masked_fill(gap_BP, -1)
        return Plan(torch.cat([site.split()[0], keep_BP], 1), padded=fewest < width)

    def _left(self, site: GradualSite, target: int) -> Tensor:
        """(B,1) how many patches stay at an early cut, `target` or more."""
        n_B1 = ((site.size[..., 0] > 0) & ~site.protect).sum(1, keepdim=True)
        entropy_B1 = torch.special.entr(_shares(class_attention(site), site)).sum(1, keepdim=True)
        early_B1 = 1 - (entropy_B1 / n_B1.log()).square()
        gone_B1 = ((n_B1 - target) / math.sqrt(site.remaining) * early_B1).round().long()
        gone_B1 = gone_B1.amax(0, keepdim=True) if self.over_batch else gone_B1
        return torch.clamp(n_B1 - gone_B1, min=target)


def _shares(score_BN: Tensor, site: Site) -> Tensor:
    """(B,N) scores as shares of their sum over the unprotected tokens; 0 for the others."""
    score_BN = score_BN.masked_fill(site.protect, 0.0)
    return score_BN / score_BN.sum(1, keepdim=True)
