"""CDPruner: keep image tokens that differ and that the question singles out.

Source: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token
Pruning in MLLMs", NeurIPS 2025 (arXiv:2506.10967), §3; llava/model/llava_arch.py.
Departures: relevance is scaled to 0 and 1 in each image (each crop of one) by itself, unless
`pooled`; where nothing is left to span the first patches follow (the code divides by 0); the
question is the text of the prompt; crops of one image keep the order that the model gives them;
the share to keep is rounded up, where the authors' command line gives a count; ties are broken
stably; similarity is float32 in a half-precision model too.
Kept as in the code, and surprising: relevance is minus the cosine to the question, so that patches
unlike it rank first.
Shapes: B images, N patches of an image, K kept, M segments of the question, C and E channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import Plan, register, take
from bench.core.kinds import ProjectorReducer
from bench.core.site import ProjectorSite


@torch.no_grad()
def relevance(image_BNE: Tensor, text_BME: Tensor, pooled: bool) -> Tensor:
    """(B,N) minus the mean cosine to the segments, from 0 to 1 over an image (or the batch)."""
    cosine_BNM = F.normalize(image_BNE, dim=-1) @ F.normalize(text_BME, dim=-1).transpose(1, 2)
    segments = text_BME.any(-1).sum(1, keepdim=True)  # others are rows of zeros
    score_BN = -cosine_BNM.sum(2) / segments
    listed = score_BN.flatten()[None] if pooled else score_BN
    low, high = listed.aminmax(dim=1, keepdim=True)
    return (score_BN - low + 1e-6) / (high - low).clamp_min(torch.finfo(low.dtype).tiny)


@torch.no_grad()
def most_diverse(kernel_BNN: Tensor, count: int) -> Tensor:
    """(B,K) patches in the order of selection, each the one that adds most to the determinant."""
    left_BN = kernel_BNN.diagonal(dim1=1, dim2=2).clone()
    spanned, chosen = kernel_BNN[:, :0], []
    for _ in range(count):
        chosen.append(at := left_BN.argmax(1, keepdim=True))
        most = left_BN.gather(1, at)
        row_BN = take(kernel_BNN, at)[:, 0]
        seen_BK = spanned.gather(2, at[:, None].expand(-1, spanned.shape[1], 1))[..., 0]
        row_BN = row_BN - (seen_BK[:, None] @ spanned)[:, 0]
        row_BN = torch.where(most > 0, row_BN * most.clamp_min(1e-30).rsqrt(), 0)
        left_BN = (left_BN - row_BN.square()).scatter(1, at, -torch.inf)
        spanned = torch.cat([spanned, row_BN[:, None]], 1)
    return torch.cat(chosen, 1)


@register(
    "cdpruner", source="Zhang et al., NeurIPS 2025, §3", url="https://arxiv.org/abs/2506.10967"
)
@dataclass(frozen=True)
class CDPruner(ProjectorReducer):
    """Keeps projected patches of largest determinant, weighed by what the question singles out.

    With `pooled` relevance is scaled over the whole batch, as the authors do over the crops of an
    image.
    """

    pooled: bool = False

    before: ClassVar[bool] = False
    reads: ClassVar[int | None] = None
    reads_words: ClassVar[str] = "segments"
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 1 / 9}

    def plan(self, site: ProjectorSite, r: int) -> Plan:  # type: ignore[override]
        """Keep the selected patches, in ascending order of position."""
        assert site.image_embeds is not None and site.text_embeds is not None
        fixed, patches = site.split()
        weight = relevance(take(site.image_embeds, patches), site.text_embeds, self.pooled)
        x = F.normalize(take(site.x, patches).float(), dim=-1)
        kernel = weight[:, :, None] * (x @ x.transpose(1, 2)) * weight[:, None]
        chosen = most_diverse(kernel, patches.shape[1] - r)
        return Plan(torch.cat([fixed, patches.gather(1, chosen)], 1).sort(1).values)
