"""ToMe: merge the most similar tokens by bipartite soft matching.

Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (arXiv:2210.09461), §3;
tome/merge.py.
Departures: ties are broken stably (lower position first); any protected token, not only class and
distillation, is excluded, and those behind the prefix do not count as even or odd; on a text tower
survivors keep their order; similarities are float32 in a half-precision model too, since bfloat16
ties tokens that are near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import Plan, Reducer, Site, register, take


@register("tome", source="Bolya et al., ICLR 2023, §3", url="https://arxiv.org/abs/2210.09461")
@dataclass(frozen=True)
class ToMe(Reducer):
    """Merges the r most similar pairs between even and odd positions, weighted by token size."""

    proportional: ClassVar[bool] = True

    def plan(self, site: Site, r: int) -> Plan:
        """Match on the keys, averaged over heads."""
        return bipartite_plan(site, site.k.mean(1, dtype=torch.float32), r)


def bipartite_plan(site: Site, metric_BNC: Tensor, r: int) -> Plan:
    """Bipartite soft matching at a site, by the tokens' `metric`.

    Protected tokens behind the prefix (end of text) stand aside, so that even and odd alternate
    among the others and half of these can always leave.
    """
    if site.only_prefix:
        return bipartite_soft_matching(metric_BNC, r, site.prefix)
    aside = site.protect.to(torch.int8)
    aside[:, : site.prefix] = 0
    order = aside.argsort(dim=1, stable=True)
    plan = bipartite_soft_matching(take(metric_BNC, order), r, site.protect.gather(1, order))
    assert plan.src is not None
    return Plan(order.gather(1, plan.keep), order.gather(1, plan.src), plan.dst)


@torch.no_grad()
def bipartite_soft_matching(metric_BNC: Tensor, r: int, protect: Tensor | int) -> Plan:
    """Each token at an even position proposes its most similar one at an odd position; r merge.

    Args:
        metric_BNC: what similarity is taken of; cosine, in float32.
        r: pairs to merge, at most half of the unprotected tokens.
        protect: (B,N) bool, tokens that neither leave nor receive; or how many leading ones.
    """
    metric = F.normalize(metric_BNC.float(), dim=-1)
    a, b = metric[:, ::2], metric[:, 1::2]
    score_BAb = a @ b.transpose(-1, -2)
    if isinstance(protect, Tensor):
        blocked = protect[:, ::2, None] | protect[:, None, 1::2]
        score_BAb = score_BAb.masked_fill(blocked, -torch.inf)
    else:
        score_BAb[:, : (protect + 1) // 2].fill_(-torch.inf)
        if protect > 1:
            score_BAb[:, :, : protect // 2].fill_(-torch.inf)
    best_BA, to_BA = score_BAb.max(-1)
    order = best_BA.argsort(dim=1, descending=True, stable=True)
    even = 2 * order
    stay = even[:, r:].sort(1).values
    odd = torch.arange(1, metric.shape[1], 2, device=metric.device).expand(len(metric), -1)
    return Plan(
        keep=torch.cat([stay, odd], 1),
        src=even[:, :r],
        dst=to_BA.gather(1, order[:, :r]) + stay.shape[1],
    )
