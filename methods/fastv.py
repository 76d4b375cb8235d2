"""FastV: from one layer on, keep the image tokens that the last token attends to most.

Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference
Acceleration for Large Vision-Language Models", ECCV 2024 (arXiv:2403.06764);
src/transformers/src/transformers/models/llama/modeling_llama.py, the variant that removes tokens.
Departures: the image's tokens are found by what they are, where the scripts count on 36 words ahead
of them; each sample of a batch is ranked by itself; ties are broken stably; the attention is
float32 in a half-precision model too; ahead of the first block, where the code drops tokens at
random, it refuses. A share of tokens is rounded as in src/FastV/llava-hf, to the nearest count.
Kept as in the code, and unlike the paper: a token's score is the attention that the last token
pays it, not the mean over all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from bench.core import Plan, Site, register
from bench.core.kinds import LanguageReducer
from methods.algorithms.language import block_before
from methods.algorithms.ranking import keep_highest


@register("fastv", source="Chen et al., ECCV 2024", url="https://arxiv.org/abs/2403.06764")
@dataclass(frozen=True)
class FastV(LanguageReducer):
    """Keeps the image tokens that the prompt's last token attends to most, from the third block on.

    The attention is the previous block's, the mean over heads. Tokens keep their positions.
    """

    needs_anchor: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5, "layers": (2,)}

    def kept(self, rate: float, tokens: int, fixed: int) -> int:
        """The share to keep is rounded to the nearest count, a half to the even one."""
        return round(rate * tokens)

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep the words and the highest attention, in ascending order of position."""
        return keep_highest(block_before(site, self.name).anchor_attention(), site, r)
