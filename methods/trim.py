"""TRIM: keep the image tokens that the question singles out, and the mean of the others.

Source: Song et al., "Less is More: A Simple yet Effective Token Reduction Method for Efficient
Multi-modal LLMs", COLING 2025 (arXiv:2409.10994); llava/model/multimodal_encoder/clip_encoder.py.
Departures: outliers are counted in each image by itself, unless `pooled`; where no patch stands out
the mean of all goes on, and where all are kept there is no mean (the code fails on both); without
`adaptive` the share to keep is rounded up, where the code rounds down; the question is the text of
the prompt; ties are broken stably; features are not rounded to float16.
Kept as in the code, and surprising: patches stand out by the lowest product with the question, not
by the highest; neither side is normalised; the count, a product of rounded numbers, may be one less
than the outliers.
Shapes: B images, N patches of an image, K kept, E channels of the joint space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import Plan, register, take
from bench.core.kinds import Adaptive, ProjectorReducer
from bench.core.site import ProjectorSite
from methods.algorithms.prumerge import outlier_ratio
from methods.algorithms.ranking import ranked


@torch.no_grad()
def singled_out(image_BNE: Tensor, text_BE: Tensor) -> Tensor:
    """(B,N) softmax over the patches of minus their product with the text."""
    return (-(image_BNE @ text_BE[..., None])[..., 0]).softmax(-1)


@register("trim", source="Song et al., COLING 2025", url="https://arxiv.org/abs/2409.10994")
@dataclass(frozen=True)
class Trim(ProjectorReducer, Adaptive):
    """Keeps patches that the question singles out in CLIP's space, and the mean of the others.

    With `adaptive` an image keeps as many as are outliers, within the budget (which, at a quarter
    of the patches, is no bound); without, the budget. With `pooled` outliers are counted over the
    whole batch, each image keeping the same share.
    """

    adaptive: bool = True
    pooled: bool = False

    reads: ClassVar[int | None] = None
    reads_words: ClassVar[str] = "cut"
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.25}

    def plan(self, site: ProjectorSite, r: int) -> Plan:  # type: ignore[override]
        """Keep patches in ascending order of position, then the mean of the others."""
        assert site.image_embeds is not None and site.text_embeds is not None
        fixed, patches = site.split()
        n = patches.shape[1]
        score = singled_out(take(site.image_embeds, patches), site.text_embeds[:, 0])
        order = ranked(score, torch.zeros_like(patches, dtype=torch.bool))[:, : n - r]
        kept = torch.ones_like(order, dtype=torch.bool)
        if self.adaptive:
            lists = score.flatten()[None] if self.pooled else score
            count = (n * outlier_ratio(lists)).long().expand(len(score))
            kept = torch.arange(n - r, device=order.device) < count[:, None]
        order = order.masked_fill(~kept, n).sort(1).values
        width = n - r if order.is_meta or not self.adaptive else int(kept.sum(1).max())
        order, gap = order[:, :width].clamp(max=n - 1), order[:, :width] == n
        keep = patches.gather(1, order).masked_fill(gap, -1)
        keep = torch.cat([fixed, keep], 1)
        left = F.pad((site.size[..., 0] > 0).float(), (0, 1))  # a slot left empty is no token
        left = left.scatter(1, keep % left.shape[1], 0)[:, None, :-1]
        mean = left / left.sum(2, keepdim=True).clamp_min(1)
        # of how many tokens it is the mean is not known without values: priced as a row of all
        return Plan(keep, extra=mean, padded=self.adaptive, soft=self.adaptive)
