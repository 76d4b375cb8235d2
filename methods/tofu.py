"""ToFu: the most similar tokens are pruned in the early blocks, merged in the later ones.

Source: Kim et al., "Token Fusion: Bridging the Gap between Token Pruning and Token Merging", WACV
2024 (arXiv:2312.01026), §3; no code of the authors is known, so algo/tofu/merge.py of
hchautran/PiToMe.
Departures: ties are broken stably; any protected token is excluded; an empty slot takes no part in
a mean.
Shapes: B batch, N tokens, M kept, R merged away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.core import Plan, Reducer, Site, check_known, register
from methods.tome import bipartite_plan

STRATEGIES = ("auto", "prune", "tofu", "mean")
METRICS = ("keys", "x")


@register("tofu", source="Kim et al., WACV 2024, §3", url="https://arxiv.org/abs/2312.01026")
@dataclass(frozen=True)
class ToFu(Reducer):
    """Matches as ToMe does; early blocks drop the sources, later ones merge and restore the norm.

    `strategy` "auto" prunes in block i of L where i <= L // 2 and merges ("tofu") after that;
    "prune", "tofu" or "mean" (without the norm) do the same everywhere. A merge scales the plain
    mean of a group by (largest norm in it) / (norm of the destination), as the code does; `mended`
    divides by the norm of the mean, as the paper says (MLERP), so that the largest norm results.
    Similarity is of the "keys" (mean over heads), as in a DeiT, or of "x", the tokens, as in CLIP
    and BLIP.
    """

    strategy: str = "auto"
    mended: bool = False
    metric: str = "keys"

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            BenchError: there is no strategy or metric of that name.
        """
        check_known("tofu has no strategy", self.strategy, STRATEGIES)
        check_known("tofu has no metric", self.metric, METRICS)

    def kept(self, rate: float, tokens: int, fixed: int) -> int:
        """The share that leaves is one of all tokens, the class token too, and rounded down."""
        n = tokens + fixed
        return tokens - int(n - n * rate)

    def plan(self, site: Site, r: int) -> Plan:
        """Match by the metric, and drop or merge by the strategy of this block."""
        strategy = self.strategy
        if strategy == "auto":
            strategy = "prune" if site.layer <= site.depth // 2 else "tofu"
        metric = site.x.float() if self.metric == "x" else site.k.mean(1, dtype=torch.float32)
        plan = bipartite_plan(site, metric, r)
        if strategy == "prune":
            return Plan(plan.keep)
        plan = plain_mean(plan, site.size)
        return plan if strategy == "mean" else self._norm_kept(plan, site)

    def _norm_kept(self, plan: Plan, site: Site) -> Plan:
        assert plan.src is not None and plan.dst is not None and plan.mix is not None
        keep_BM, src_BR = plan.mix
        assert src_BR is not None
        norm_BN = site.x.float().norm(dim=-1) * (site.size[..., 0] > 0)
        base_BM = norm_BN.gather(1, plan.keep)
        largest_BM = base_BM.scatter_reduce(1, plan.dst, norm_BN.gather(1, plan.src), "amax")
        if self.mended:
            base_BM = plan.apply(site.x.float(), site.size)[0].norm(dim=-1)
        tiny = torch.finfo(base_BM.dtype).tiny
        scale_BM = torch.where(base_BM > 0, largest_BM / base_BM.clamp_min(tiny), 1)
        return replace(plan, mix=(keep_BM * scale_BM, src_BR * scale_BM.gather(1, plan.dst)))


def plain_mean(plan: Plan, size_BN1: Tensor) -> Plan:
    """The plan with every token of a group weighing the same, whatever it stands for."""
    assert plan.src is not None and plan.dst is not None
    filled_BN = size_BN1[..., 0].sign()
    keep_BM, src_BR = filled_BN.gather(1, plan.keep), filled_BN.gather(1, plan.src)
    count_BM = keep_BM.scatter_add(1, plan.dst, src_BR).clamp_min(1)
    return replace(plan, mix=(keep_BM / count_BM, src_BR / count_BM.gather(1, plan.dst)))
