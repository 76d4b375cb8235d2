"""What methods that compare the frames of a video have in common.

Shape suffixes: B videos, F frames, P tokens of a frame, N = F * P, C channels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bench.core import take
from bench.core.site import ProjectorSite


def by_frame(site: ProjectorSite) -> Tensor:
    """(B,F,P,C) the unprotected tokens of a video, in float32."""
    _, tokens = site.split()
    x_BNC = take(site.x, tokens).float()
    return x_BNC.view(len(x_BNC), site.frames, -1, x_BNC.shape[2])


def likeness(x_BFPC: Tensor, other_BFPC: Tensor) -> Tensor:
    """(B,F,P) cosine of each token with the one at the same place of the other frame."""
    return F.cosine_similarity(x_BFPC, other_BFPC, dim=-1, eps=1e-8)
