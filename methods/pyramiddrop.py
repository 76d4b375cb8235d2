"""PyramidDrop: drop half of the image tokens after each quarter of the language model.

Source: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
Redundancy Reduction", CVPR 2025 (arXiv:2410.17247); llava/model/modeling_llama_pdrop.py.
Departures: grouped queries share keys (the authors' code runs without only); padding may stand in
front; in training the last token ranks too, where the code takes those ahead of the answers; ties
are broken stably; the attention is float32 in a half-precision model too; it refuses to act ahead
of the first block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from bench.core import Plan, Site, register
from bench.core.kinds import Compounding, LanguageReducer
from methods.algorithms.language import block_before
from methods.algorithms.ranking import keep_highest, precise


@register("pyramiddrop", source="Xing et al., CVPR 2025", url="https://arxiv.org/abs/2410.17247")
@dataclass(frozen=True)
class PyramidDrop(LanguageReducer, Compounding):
    """Keeps the image tokens that the prompt's last token is about to attend to, ever fewer.

    The attention is that of the block ahead, computed once more for it. A keep rate is a share of
    the image's tokens at first and compounds over the layers (floor); positions are renumbered.
    """

    needs_anchor: ClassVar[bool] = True
    renumbers: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep the words and the highest attention, in ascending order of position."""
        inside = block_before(site, self.name)
        q, k = inside.ahead()
        score_BN = precise(replace(inside, q=q, k=k)).anchor_attention()
        return keep_highest(score_BN, site, r)
