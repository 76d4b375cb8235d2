"""FlowCut: patches leave the image encoder block by block, by a score that runs along.

Source: Tong et al., "FlowCut: Rethinking Redundancy via Information Flow for Efficient
Vision-Language Models", NeurIPS 2025 (arXiv:2505.19536); flowcut/modeling_clip_flowcut.py,
flowcut/utils_flowcut.py, and for the language model flowcut/modeling_llama_flowcut.py.
Departures: each image of a batch loses as many patches as it needs, shorter ones getting empty
slots, where the code lets the largest share of the batch decide (`over_batch=True`); an attention
of 0 adds nothing to the entropy (the code fails); ties are broken stably; scores are float32 in a
half-precision model too. Cuts are counted back from the last one, by default ahead of the last
block but one, which makes the features of LLaVA; in an encoder of odd depth the code ends one block
earlier. In the language model the image's tokens are found by what they are, and grouped queries
share values; the rules of the authors' Qwen2-VL differ and are left out.
Kept as in the code, and surprising: dot products of values are not scaled in the image encoder, and
are in the language model.
Without values (on the meta device) all patches stay up to the last cut.
Shapes: B images, N tokens, P patches, H heads, D channels a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import Plan, Site, Unsupported, register
from bench.core.kinds import Bounded, Gradual, LanguageReducer
from bench.core.site import GradualSite
from methods.algorithms.language import block_before
from methods.algorithms.ranking import class_attention, keep_highest, ranked


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
        v_BHND = site.v.float()
        anchor_B1H1 = site.anchor[:, None, None, None].expand(
            -1, v_BHND.shape[1], 1, v_BHND.shape[3]
        )
        like_BHN = (v_BHND.gather(2, anchor_B1H1) @ v_BHND.transpose(2, 3))[:, :, 0]
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
        width = int(left_B1.max())
        gap_BP = torch.arange(width, device=left_B1.device) >= left_B1
        first_BP = order_BN[:, fixed : fixed + width].masked_fill(gap_BP, most + fixed)
        keep_BP = first_BP.sort(1).values
        keep_BP = keep_BP.masked_fill(gap_BP, -1)
        return Plan(torch.cat([site.split()[0], keep_BP], 1), padded=bool(gap_BP.any()))

    def _left(self, site: GradualSite, target: int) -> Tensor:
        """(B,1) how many patches stay at an early cut, `target` or more."""
        n_B1 = ((site.size[..., 0] > 0) & ~site.protect).sum(1, keepdim=True)
        entropy_B1 = torch.special.entr(_shares(class_attention(site), site)).sum(1, keepdim=True)
        early_B1 = 1 - (entropy_B1 / n_B1.log()).square()
        gone_B1 = ((n_B1 - target) / site.remaining**0.5 * early_B1).round().long()
        gone_B1 = gone_B1.amax(0, keepdim=True) if self.over_batch else gone_B1
        return (n_B1 - gone_B1).clamp_min(target)


@register(
    "flowcut-language", source="Tong et al., NeurIPS 2025", url="https://arxiv.org/abs/2505.19536"
)
@dataclass(frozen=True)
class FlowCutLanguage(LanguageReducer):
    """FlowCut's second stage: keeps image tokens by what the last token pays them and their values.

    Its attention and value likeness, over the image's tokens alone, are those of the block before.
    The authors run it where images come in crops, and halve the budget of each crop for it.
    """

    needs_anchor: ClassVar[bool] = True
    renumbers: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5, "layers": (2,)}

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep the words and the highest scores, in ascending order of position."""
        return keep_highest(self.scores(site), site, r)

    def scores(self, site: Site) -> Tensor:
        """(B,N) score of the image's tokens; 0 for the words."""
        inside = block_before(site, self.name)
        v_BHND = inside.v.float()
        pays_BN, like_BN = (
            _last_over_image(a_BHND, b_BHND, inside)
            for a_BHND, b_BHND in ((inside.q, inside.k), (v_BHND, v_BHND))
        )
        return (pays_BN + like_BN) * v_BHND.mean(1).abs().sum(-1)


def _shares(score_BN: Tensor, site: Site) -> Tensor:
    """(B,N) scores as shares of their sum over the unprotected tokens; 0 for the others."""
    score_BN = score_BN.masked_fill(site.protect, 0.0)
    return score_BN / score_BN.sum(1, keepdim=True)


def _last_over_image(a_BHND: Tensor, b_BHND: Tensor, site: Site) -> Tensor:
    """(B,N) softmax over the image of the scaled products with the last token, mean over heads."""
    b_BHND = b_BHND.repeat_interleave(a_BHND.shape[1] // b_BHND.shape[1], 1)
    logits_BHN = (a_BHND[:, :, -1:] @ b_BHND.transpose(2, 3))[:, :, 0] / a_BHND.shape[-1] ** 0.5
    return logits_BHN.masked_fill(site.protect[:, None], -torch.inf).softmax(-1).mean(1)
