"""SparseVLM+: image tokens by what words pay them beyond what distance alone would.

Source: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model
Inference", ICML 2025 (arXiv:2410.04417); llava/model/language_model/modelling_sparse_llama.py,
score.py and utils.py, version 2.0.
Departures: those of `sparsevlm` that concern who rates; of fewer heads than `heads` all count (the
code crashes).
Kept as in the code, and surprising: the logits that distance alone makes may be negative or near 0,
and so may what is divided by them. The table for 192 tokens is the default: 300, 200 and 118 of
576, at the blocks 3, 7 and 16 of 32. The others are (238, 108, 60) for 128 tokens, (246, 54, 28)
for 96 and (66, 34, 20) for 64.
Shapes: B samples, N tokens, H heads, P words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import BenchError, Plan, Site, Unsupported, register
from bench.core.kinds import Compounding, LanguageReducer
from bench.core.site import LanguageSite
from methods.algorithms.language import block_before, paid_by_raters
from methods.algorithms.ranking import keep_highest


@register(
    "sparsevlm-plus", source="Zhang et al., ICML 2025", url="https://arxiv.org/abs/2410.04417"
)
@dataclass(frozen=True)
class SparseVLMPlus(LanguageReducer, Compounding):
    """Keeps image tokens by the attention of words that fit the image, whatever their distance.

    Attention is divided by what positions alone make of it, and only the `heads` count that look at
    the image most. Nothing is merged, and tokens keep their positions.
    """

    heads: int = 14

    needs_anchor: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {
        "keep_rate": (300 / 576, 200 / 576, 118 / 576),
        "layers": (3 / 32, 7 / 32, 16 / 32),
    }

    def __post_init__(self) -> None:
        """Refuse to count no head."""
        if self.heads < 1:
            raise BenchError("sparsevlm-plus: heads must be at least 1")

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep the words and the best rated, in ascending order of position."""
        return keep_highest(self.rated(site), site, r)

    def rated(self, site: Site) -> Tensor:
        """(B,N) attention that raters pay in the previous block, mean over heads and raters."""
        inside = block_before(site, self.name)
        paid_BHN = paid_by_raters(inside, self.name, self.by_distance(inside))
        image_BHN = paid_BHN.masked_fill(site.protect[:, None], 0)
        order_BH = image_BHN.sum(-1).argsort(dim=1, descending=True, stable=True)
        most_BH1 = order_BH[:, : self.heads, None]
        return paid_BHN.gather(1, most_BH1.expand(-1, -1, paid_BHN.shape[2])).mean(1)

    def by_distance(self, site: LanguageSite) -> Tensor:
        """(B or 1,1,N,N) the logits among vectors of ones, which positions alone tell apart.

        Raises:
            Unsupported: the model has no rotary embedding.
        """
        if site.turned is None:
            raise Unsupported(f"method '{self.name}' needs a language model with rotary embedding")
        ones = site.turned(site.q.new_ones(1, 1, *site.q.shape[2:]))
        return ones @ ones.transpose(2, 3) / math.sqrt(site.q.shape[-1])
