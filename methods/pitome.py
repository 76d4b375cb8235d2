"""PiToMe: tokens that resemble many others are merged, those that stand alone are protected.

Source: Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS
2024 (arXiv:2405.16148), §3.2; algo/pitome/merge.py and algo/pitome/patch/deit.py.
Departures: ties are broken stably; any protected token is set aside, not only the class token; on a
text tower survivors keep their order.
Shapes: B batch, N tokens, T unprotected tokens, C channels, a sources and b destinations to match.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import Plan, Reducer, Site, check_known, register, take
from methods.tofu import plain_mean
from methods.tome import bipartite_plan

VARIANTS = ("auto", "pitome", "bsm-split", "bsm")
METRICS = ("keys", "x")


@register(
    "pitome", source="Tran et al., NeurIPS 2024, §3.2", url="https://arxiv.org/abs/2405.16148"
)
@dataclass(frozen=True)
class PiToMe(Reducer):
    """Merges among the tokens of highest energy, those most like all the others.

    Variants: "pitome" pairs up the 2r tokens of highest energy; "bsm-split" merges the r best
    matches of all tokens, energy deciding only who may send and who may receive; "bsm" is ToMe's
    matching by position; "auto" splits in the first half of the blocks and pairs up after that.
    `margin` is a number, or (start, fall): start - fall * i / L in block i of L. Similarity is of
    the "keys" (mean over heads) or of "x", the tokens; `weighted` says whether sizes weigh a mean.
    The authors keep the same share in every block: `keep_rate=0.9, layers=range(12)`.
    """

    variant: str = "auto"
    margin: float | tuple[float, float] = (0.75, 0.75)
    alpha: float = 1.0
    metric: str = "keys"
    weighted: bool = True

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            BenchError: there is no variant or metric of that name.
        """
        check_known("pitome has no variant", self.variant, VARIANTS)
        check_known("pitome has no metric", self.metric, METRICS)

    def kept(self, rate: float, tokens: int, fixed: int) -> int:
        """The share that leaves is rounded down; "bsm" counts the class token in."""
        n = tokens + fixed if self.variant == "bsm" else tokens
        return tokens - int(n - n * rate)

    def plan(self, site: Site, r: int) -> Plan:
        """Match by the variant of this block."""
        metric = site.x.float() if self.metric == "x" else site.k.mean(1, dtype=torch.float32)
        variant = self.variant
        if variant == "auto":
            variant = "bsm-split" if 2 * site.layer < site.depth else "pitome"
        if variant == "bsm":
            plan = bipartite_plan(site, metric, r)
        else:
            free = site.x.shape[1] - site.n_protected
            plan = self._by_energy(site, metric, r, 2 * r if variant == "pitome" else free)
        return plan if self.weighted else plain_mean(plan, site.size)

    @torch.no_grad()
    def _by_energy(self, site: Site, metric_BNC: Tensor, r: int, among: int) -> Plan:
        """Merge r of the `among` tokens of highest energy into others of them."""
        fixed_BF, free_BT = site.split()
        metric = F.normalize(take(metric_BNC, free_BT), dim=-1)
        alike_BTT = metric @ metric.transpose(-1, -2)
        alike_BTT.diagonal(dim1=1, dim2=2).fill_(1)  # but for rounding: two tokens alone do tie
        energy_BT = F.elu(alike_BTT - self._margin(site), self.alpha).mean(-1)
        rank_BT = energy_BT.argsort(dim=1, descending=True, stable=True)
        a, b, alone = rank_BT[:, :among:2], rank_BT[:, 1:among:2], rank_BT[:, among:]
        score_Bab = take(alike_BTT, a).gather(2, b[:, None].expand(-1, a.shape[1], -1))
        best_Ba, to_Ba = score_Bab.max(-1)
        order = best_Ba.argsort(dim=1, descending=True, stable=True)
        a, to_BR = a.gather(1, order), to_Ba.gather(1, order[:, :r])
        keep = torch.cat([alone, a[:, r:]], 1)
        dst = to_BR + fixed_BF.shape[1] + keep.shape[1]
        keep = free_BT.gather(1, torch.cat([keep, b], 1))
        return Plan(torch.cat([fixed_BF, keep], 1), free_BT.gather(1, a[:, :r]), dst)

    def _margin(self, site: Site) -> float:
        margin = self.margin
        start, fall = (margin, 0.0) if isinstance(margin, int | float) else margin
        return start - fall * site.layer / site.depth
