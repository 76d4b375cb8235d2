"""PruMerge: keep image tokens of outstanding class attention, and add their neighbours to them.

Source: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal
Models", ICCV 2025 (arXiv:2403.15388), §3; llava/model/multimodal_encoder/clip_encoder.py.
Departures: outliers are counted in each image by itself unless `pooled` (the code pools a batch,
and PruMerge+ runs on one image only), shorter lists being filled with empty slots; where no patch
stands out the first one is kept; an adaptive image keeps no more tokens than the budget says, that
of those left out among them, the list being cut at its end; without `adaptive`, PruMerge+ divides
any budget into halves, where the code works for 1/8 and 1/16 of 576 patches; 576 and 575 are the
model's own numbers; more neighbours than there are become all; ratios above 1/3 do not crash.
Kept as in the code, and surprising: neighbours are added by their attention, not averaged; all
heads count as a single one; the count, a product of rounded numbers, may be one less than the
outliers; without `adaptive`, PruMerge+ may list a patch twice, and then loses the first of those
left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import BenchError, Plan, Site, register, take
from bench.core.kinds import Adaptive, ProjectorReducer
from methods.algorithms.prumerge import (
    enriched,
    full_width_attention,
    left_out,
    listed_by_count,
    listed_by_ratio,
    outlier_ratio,
)


@register("prumerge", source="Shang et al., ICCV 2025, §3", url="https://arxiv.org/abs/2403.15388")
@dataclass(frozen=True)
class PruMerge(ProjectorReducer, Adaptive):
    """Keeps patches of outstanding class attention, adds what is near them, and sums up the rest.

    With `adaptive` an image keeps as many as stand out, within the budget; without, the budget
    (the authors' is `keep_rate=0.125`, with `plus` 0.25). `plus` (PruMerge+) also keeps patches in
    even steps. The attention and the keys are those of the block after the features. `pooled`, as
    in the authors' code, counts what stands out over a batch, whose images then keep equally many.
    """

    plus: bool = False
    adaptive: bool = True
    k_neighbours: int = 32
    pooled: bool = False

    least: ClassVar[int] = 2
    needs_anchor: ClassVar[bool] = True
    reads: ClassVar[int] = 1
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.5}

    def __post_init__(self) -> None:
        """Set the authors' budget, where it is the budget that counts."""
        if self.k_neighbours < 1:
            raise BenchError("prumerge: k_neighbours must be at least 1")
        if not self.adaptive:
            object.__setattr__(self, "budget", {"keep_rate": 0.25 if self.plus else 0.125})

    def kept(self, rate: float, tokens: int, fixed: int) -> int:
        """Without `adaptive` a share rounded down, of `plus` each half; the rest's token on top."""
        if self.adaptive:
            return super().kept(rate, tokens, fixed)
        kinds = 2 if self.plus else 1
        return kinds * int(rate / kinds * tokens) + 1

    def plan(self, site: Site, r: int) -> Plan:
        """The class token, then new tokens: by descending attention, in even steps, the rest."""
        fixed, patches = site.split()
        q, key = (t.transpose(1, 2).flatten(2) for t in (site.q, site.k))
        seen, n = site.size[..., 0] > 0, patches.shape[1]
        attention = full_width_attention(q, key, seen).gather(1, patches)
        listed = self._listed(attention, n - r - 1)
        weight = enriched(attention, take(key, patches), listed, self.k_neighbours)
        weight = torch.zeros(*weight.shape[:2], n + fixed.shape[1], device=weight.device).scatter(
            2, patches[:, None].expand_as(weight), weight
        )
        stands_for = take(site.size, patches)[..., 0]
        size = stands_for.gather(1, listed.clamp(min=0)).masked_fill(listed < 0, 0)
        rest = (stands_for * left_out(listed, n)).sum(1, keepdim=True)
        size = torch.cat([size, rest], 1)[..., None]
        order = (size[..., 0] == 0).to(torch.int8).argsort(dim=1, stable=True)  # gaps go last
        size = torch.cat([take(site.size, fixed), take(size, order)], 1)
        return Plan(fixed, extra=take(weight, order), soft=True, size=size, padded=self.adaptive)

    def _listed(self, attention: Tensor, most: int) -> Tensor:
        """(B,K) patches to keep, with gaps at the end where an image keeps fewer than another."""
        if not self.adaptive:
            spaced = most // 2 if self.plus else 0
            return listed_by_count(attention, most - spaced, spaced)
        ratio = outlier_ratio(attention.flatten()[None] if self.pooled else attention)
        order, count = listed_by_ratio(attention, ratio.expand(len(attention)), self.plus)
        width = most if count.is_meta else min(int(count.max()), most)
        gap = torch.arange(width, device=order.device) >= count[:, None]
        return order[:, :width].masked_fill(gap, -1)
