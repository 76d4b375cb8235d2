"""VisionZip: keep attended image tokens, and gather the others into a few.

Source: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
CVPR 2025 (arXiv:2412.04467), §3; visionzip/clip_encoder.py, visionzip/utils.py.
Departures: a budget is split by `contextual_share` (by default as 64 tokens are split into 54 and
10), unless `dominant` and `contextual` give the two counts; without contextual tokens the others
are dropped; crops of one image keep the order that the model gives them; ties are broken stably;
attention and similarity are float32 in a half-precision model too.
Kept as in the code, and surprising: a gathered token is its centre plus the mean of the others,
not a mean of all.
Shapes: B images, N tokens of an image with its class token, M not dominant, T centres, R others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import BenchError, Plan, Site, register, take
from bench.core.kinds import ProjectorReducer
from methods.algorithms.ranking import class_attention, ranked


@torch.no_grad()
def gathered(metric_BMC: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (B,T), evenly spaced in the list, the others (B,R), and the centre (B,R) of each.

    Centres and others are places in the list; each other token joins the centre of largest cosine.
    """
    B, M, _ = metric_BMC.shape
    metric_BMC = F.normalize(metric_BMC.float(), dim=-1)
    step = max(1, M // count)
    place = torch.arange(M, device=metric_BMC.device)
    centre = (place % step == 0) & (place < count * step)
    order = (~centre).to(torch.int8).argsort(stable=True).expand(B, M)
    alike = take(metric_BMC, order[:, count:]) @ take(metric_BMC, order[:, :count]).transpose(1, 2)
    return order[:, :count], order[:, count:], alike.argmax(-1)


@register("visionzip", source="Yang et al., CVPR 2025, §3", url="https://arxiv.org/abs/2412.04467")
@dataclass(frozen=True)
class VisionZip(ProjectorReducer):
    """Keeps the patches the class token attends to most and gathers the rest into a few tokens.

    The class token goes to the language model too, and is one of the `dominant` tokens.
    """

    dominant: int | None = None
    contextual: int | None = None
    contextual_share: float = 10 / 64

    needs_anchor: ClassVar[bool] = True
    keeps_class: ClassVar[bool] = True
    newlines: ClassVar[bool] = False
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 1 / 9}

    def __post_init__(self) -> None:
        """Refuse counts that make no sense."""
        if (self.dominant is None) != (self.contextual is None):
            raise BenchError("visionzip: give both dominant= and contextual=, or neither")
        if self.dominant is not None and (self.dominant < 1 or (self.contextual or 0) < 0):
            raise BenchError("visionzip: dominant must be at least 1 and contextual at least 0")
        if not 0 <= self.contextual_share < 1:
            raise BenchError("visionzip: contextual_share must be a share in [0, 1)")

    def feasible(self, r: int, tokens: int, grid: tuple[int, int] | None) -> int:
        """One patch more than asked: the class token, which is no patch, takes its place."""
        if self.dominant is None:
            return super().feasible(r + 1, tokens, grid)
        kept = self.dominant + (self.contextual or 0)
        if kept > tokens:
            raise BenchError(f"visionzip: give dominant + contextual <= {tokens}, not {kept}")
        return tokens + 1 - kept

    def plan(self, site: Site, r: int) -> Plan:
        """Keep the dominant in order of position, the class token first, then the centres."""
        kept, contextual = site.x.shape[1] - r, self.contextual
        if contextual is None:
            contextual = min(round(kept * self.contextual_share), kept - site.n_protected)
        elif self.dominant is not None:
            kept = self.dominant + contextual
        order_BN = ranked(class_attention(site), site.protect)
        keep, rest = (part.sort(1).values for part in order_BN.tensor_split([kept - contextual], 1))
        if not contextual:
            return Plan(keep)
        centre, other, to = gathered(take(site.k.mean(1, dtype=torch.float32), rest), contextual)
        count = (to[..., None] == torch.arange(contextual, device=to.device)).sum(1)
        keep = torch.cat([keep, rest.gather(1, centre)], 1)
        mix = (torch.ones_like(keep, dtype=torch.float32), 1 / count.gather(1, to))
        return Plan(keep, src=rest.gather(1, other), dst=to + kept - contextual, mix=mix)
