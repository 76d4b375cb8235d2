"""SparseVLM: words that speak of the image rate its tokens; some of the dropped are merged.

Source: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model
Inference", ICML 2025 (arXiv:2410.04417); llava/model/language_model/modelling_sparse_llama.py,
score.py and utils.py, version 1.0; version 2.0 is `sparsevlm-plus`.
Departures: the image's tokens are found by what they are, and each sample of a batch is reduced by
itself; at equal density the lower position counts as the denser one, where the code adds random
noise; densities are compared as logarithms; where no word is above the mean (a single one, say),
the last token rates (the code divides by zero); a budget that is met already removes nothing (the
code drops one token at least); ties are broken stably; scores are float32 in a half-precision model
too; it refuses to act ahead of the first block.
Kept as in the code, and unlike the paper: how many tokens stay is a fixed table, not the attention
matrix's rank, and merged tokens come on top of it. The table for 192 tokens is the default: 300,
200 and 110 of 576, at the blocks 3, 7 and 16 of 32. The others are `keep_rate=(303/576, 110/576,
36/576)` for 128 tokens, `(238/576, 48/576, 26/576)` for 96, `(66/576, 30/576, 17/576)` for 64.
Shapes: B samples, N tokens, M recycled tokens, E clusters, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import BenchError, Plan, Site, register, take
from bench.core.kinds import Compounding, LanguageReducer
from methods.algorithms.clustering import density_peaks
from methods.algorithms.language import block_before, paid_by_raters
from methods.algorithms.ranking import ranked


@register("sparsevlm", source="Zhang et al., ICML 2025", url="https://arxiv.org/abs/2410.04417")
@dataclass(frozen=True)
class SparseVLM(LanguageReducer, Compounding):
    """Keeps image tokens by the attention of words that fit the image, merges some of the rest.

    Of the dropped tokens the `recycle_ratio` with the most attention is merged, about
    `1 / cluster_ratio` into one, which come on top of the budget. Positions are renumbered.
    """

    recycle_ratio: float = 0.3
    cluster_ratio: float = 1 / 10

    needs_anchor: ClassVar[bool] = True
    renumbers: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {
        "keep_rate": (300 / 576, 200 / 576, 110 / 576),
        "layers": (3 / 32, 7 / 32, 16 / 32),
    }

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0 <= self.recycle_ratio <= 1 or not 0 <= self.cluster_ratio <= 1:
            raise BenchError("sparsevlm: recycle_ratio and cluster_ratio must be shares in [0, 1]")

    @torch.no_grad()
    def plan(self, site: Site, r: int) -> Plan:
        """Keep words and the best rated in ascending order; merged tokens by descending peak."""
        score_BN, N = self.rated(site), site.x.shape[1]
        order_BN = ranked(score_BN, site.protect)
        again_BM = order_BN[:, N - r :][:, : int(self.recycle_ratio * r) + 1]
        M = again_BM.shape[1]
        E = min(int(self.cluster_ratio * M) + 1, M)
        _, cluster_BM = density_peaks(take(site.x, again_BM), E, E)
        member_BEM = cluster_BM[:, None] == torch.arange(E, device=site.x.device)[:, None]
        weight_BEM = member_BEM / (member_BEM.sum(-1, keepdim=True) + 1e-6)
        weight_BEN = torch.zeros_like(score_BN)[:, None].repeat(1, E, 1)
        weight_BEN = weight_BEN.scatter(2, again_BM[:, None].expand_as(weight_BEM), weight_BEM)
        return Plan(order_BN[:, : N - r].sort(1).values, extra=weight_BEN, members=M)

    def rated(self, site: Site) -> Tensor:
        """(B,N) attention that raters pay in the previous block, mean over heads and raters."""
        return paid_by_raters(block_before(site, self.name), self.name).mean(1)
