"""FlowCut's second stage: image tokens leave the language model by attention and values.

Source: Tong et al., "FlowCut: Rethinking Redundancy via Information Flow for Efficient
Vision-Language Models", NeurIPS 2025 (arXiv:2505.19536); flowcut/modeling_llama_flowcut.py.
Departures: the image's tokens are found by what they are, in each sample by itself; a budget is a
share of them, where the authors' is the number that `flowcut` left of one image; ties are broken
stably; scores are float32 in a half-precision model too; the rules of the authors' Qwen2-VL differ
and are left out; it refuses to act ahead of the first block.
Kept as in the code: dot products of values are scaled here, and are not in the image encoder.
Shapes: B samples, N tokens, H heads, D channels a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import Plan, Site, register
from bench.core.kinds import LanguageReducer
from methods.algorithms.language import block_before
from methods.algorithms.ranking import keep_highest


@register(
    "flowcut-language", source="Tong et al., NeurIPS 2025", url="https://arxiv.org/abs/2505.19536"
)
@dataclass(frozen=True)
class FlowCutLanguage(LanguageReducer):
    """Keeps image tokens by what the prompt's last token pays them, by value and likeness of value.

    Attention and likeness, each over the image's tokens alone, are those of the block before. The
    authors run it behind `flowcut` where images come in crops: half of the tokens stay.
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


def _last_over_image(a_BHND: Tensor, b_BHND: Tensor, site: Site) -> Tensor:
    """(B,N) softmax over the image of the scaled products with the last token, mean over heads."""
    b_BHND = b_BHND.repeat_interleave(a_BHND.shape[1] // b_BHND.shape[1], 1)
    assert site.anchor is not None  # as `needs_anchor` has it; padding may stand behind it
    last_BH1D = a_BHND[torch.arange(len(a_BHND), device=a_BHND.device), :, site.anchor][:, :, None]
    logits_BHN = (last_BH1D @ b_BHND.transpose(2, 3))[:, :, 0] / math.sqrt(a_BHND.shape[-1])
    return logits_BHN.masked_fill(site.protect[:, None], -torch.inf).softmax(-1).mean(1)
