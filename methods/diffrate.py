"""DiffRate: tokens ranked by the class token; the last are pruned, those before them merged.

Source: Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers",
ICCV 2023 (arXiv:2305.17997), §3; DiffRate/patch/deit.py and DiffRate/merge.py. The rates that the
authors learned and published are in `diffrate.json` of `bench.assets`; learning rates is no part.
Departures: ties are broken stably; a block that removes nothing does not sort either; a size that
negative similarities would bring below 0 stays 0 (theirs ends in NaN); distillation, register and
start-of-text tokens are protected like the class token; on a text tower the end-of-text token ranks
and survivors keep their order.
Shapes: B batch, N tokens, M kept, R merged away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch.nn import functional as F

from bench.core import BenchError, Plan, Reducer, Site, register, take
from methods.algorithms.ranking import ranked_by_anchor
from methods.algorithms.rates import published_rates
from methods.tofu import plain_mean


@register("diffrate", source="Chen et al., ICCV 2023, §3", url="https://arxiv.org/abs/2305.17997")
@dataclass(frozen=True)
class DiffRate(Reducer):
    """Ranks tokens by class attention, prunes the last and merges the next into their likes.

    `prune` says how much of a removal is pruned, the rest being merged: a share, or a list with one
    number of tokens a block. `rates` names a published schedule, such as "deit-s/2.9" (model and
    GMACs), which sets `prune`, and `r` where the user gives no budget.
    """

    prune: float | Sequence[int] = 0.5
    rates: str = ""

    proportional: ClassVar[bool] = True
    needs_anchor: ClassVar[bool] = True
    max_share: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Look the rates up.

        Raises:
            BenchError: there are none of that name, or the share is none.
        """
        if self.rates:
            pruned, removed = published_rates(self.rates)
            object.__setattr__(self, "prune", pruned)
            object.__setattr__(self, "budget", {"r": removed})
        if isinstance(self.prune, int | float) and not 0 <= self.prune <= 1:
            raise BenchError(f"prune must be a share in [0, 1] or a list, not {self.prune!r}")

    def plan(self, site: Site, r: int) -> Plan:
        """Prune the block's share of r, merge the rest."""
        n = site.x.shape[1]
        return prune_then_merge(site, n - self._pruned(site, r), n - r)

    def _pruned(self, site: Site, r: int) -> int:
        if isinstance(self.prune, int | float):
            return int(self.prune * r + 0.5)
        if len(self.prune) != site.depth:
            lengths = f"{len(self.prune)} entries but the model has {site.depth} blocks"
            raise BenchError(f"prune has {lengths}")
        return min(self.prune[site.layer], r)


def prune_then_merge(site: Site, prune_kept_num: int, merge_kept_num: int) -> Plan:
    """Keep `prune_kept_num` tokens, then merge down to `merge_kept_num` (both with class token).

    A source makes the size of what it joins grow by its own, times their cosine similarity; the
    tokens of a group weigh the same in its mean.
    """
    order_BN = ranked_by_anchor(site)[:, :prune_kept_num]
    keep_BM, src_BR = order_BN[:, :merge_kept_num], order_BN[:, merge_kept_num:]
    if not src_BR.shape[1] or keep_BM.shape[1] <= site.n_protected:  # nothing, or nobody to join
        return Plan(keep_BM)
    x = F.normalize(site.x.float(), dim=-1)
    into_BMC = take(x, keep_BM[:, site.n_protected :])  # protected tokens rank first, and take none
    cosine_BR, dst_BR = (take(x, src_BR) @ into_BMC.transpose(-1, -2)).max(-1)
    dst_BR = dst_BR + site.n_protected
    size_BN = site.size[..., 0]
    grown_BR = size_BN.gather(1, src_BR) * cosine_BR
    size_BM = size_BN.gather(1, keep_BM).scatter_add(1, dst_BR, grown_BR).clamp_min(0)
    plan = plain_mean(Plan(keep_BM, src_BR, dst_BR), site.size)
    return replace(plan, size=size_BM[..., None])
