"""vid-TLDR: merge the most similar tokens, and let background contribute nothing.

Source: Choi et al., "vid-TLDR: Training Free Token Merging for Light-weight Video Transformer",
CVPR 2024 (arXiv:2403.13347), §3; multi_modality/utils/vid_TLDR.py.
Departures: the authors' encoder has no class token; here protected tokens neither leave nor
receive, and the attention that is scored is among the others alone; an attention weight of 0 counts
as 0 instead of NaN; ties are broken stably; a share to remove is given as `keep_rate`.
Shapes: B batch, N tokens, M kept, R merged away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import Plan, Reducer, Site, Unsupported, register
from methods.tome import bipartite_soft_matching


@register("vid-tldr", source="Choi et al., CVPR 2024, §3", url="https://arxiv.org/abs/2403.13347")
@dataclass(frozen=True)
class VidTLDR(Reducer):
    """Merges as ToMe does, each source weighted by how sharply it attends; background adds nothing.

    What a source adds to a token and to its size is multiplied by its objectness, so sizes are the
    foreground that a token stands for, and do not add up to the input. The authors reduce in the
    first three blocks only: 600, 200 and 100 go of 2,352 tokens.
    """

    proportional: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": (0.7448, 0.8858, 0.9355), "layers": (0, 1, 2)}

    def plan(self, site: Site, r: int) -> Plan:
        """Match on the tokens themselves.

        Raises:
            Unsupported: the tower reads text.
        """
        if site.tower == "text":
            raise Unsupported("method 'vid-tldr' tells foreground in images; it has none for text")
        r = self.feasible(r, site.x.shape[1] - site.n_protected, None)
        plan = bipartite_soft_matching(site.x, r, site.protect)
        assert plan.src is not None and plan.dst is not None
        size_BN = site.size[..., 0]
        adds_BR = (objectness(site) * size_BN).gather(1, plan.src)
        kept_BM = size_BN.gather(1, plan.keep)
        size_BM = kept_BM.scatter_add(1, plan.dst, adds_BR)
        whole_BM = size_BM.clamp_min(torch.finfo(size_BM.dtype).tiny)
        mix = (kept_BM / whole_BM, adds_BR / whole_BM.gather(1, plan.dst))
        return replace(plan, mix=mix, size=size_BM[..., None])


def objectness(site: Site) -> Tensor:
    """(B,N) in [0,1]: how much sharper than the mean a token attends, the sharpest being 1.

    Sharpness is the negative entropy of the attention, averaged over heads and without the sizes.
    The authors first map it to [0,1], which the mean and the maximum undo. They undo a constant and
    a factor as well: what is summed here is the divergence from even attention, times the number of
    tokens. Where attention is nearly even its terms do not feel an error of rounding, while those
    of the entropy pass it on to a difference that is a thousand times smaller than they are.
    """
    out_BN = site.protect | (site.size[..., 0] == 0)
    seen_BN = (~out_BN).float()
    count_B1 = seen_BN.sum(1, keepdim=True)
    bias = torch.zeros_like(site.size[..., 0]).masked_fill(out_BN, -torch.inf)[:, None, None]
    scored = replace(site, q=site.q.float(), k=site.k.float(), bias=bias)
    times_BNN = scored.attention().mean(1) * count_B1[..., None]  # 1 where attention is even
    tiny = torch.finfo(times_BNN.dtype).tiny  # 0 log 0 is 0, and so that its slope is finite
    apart_BNN = times_BNN.xlogy(times_BNN.clamp_min(tiny)) - (times_BNN - seen_BN[:, None])
    sharp_BN = apart_BNN.sum(-1).masked_fill(out_BN, 0)
    mean = sharp_BN.sum(1, keepdim=True) / count_B1
    above_BN = (sharp_BN - mean).clamp_min(0).masked_fill(out_BN, 0)
    return above_BN / above_BN.amax(1, keepdim=True).clamp_min(tiny)
