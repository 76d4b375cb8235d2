"""SCOPE: keep image tokens that are attended to and cover what the others show.

Source: Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal
LLMs", NeurIPS 2025 (arXiv:2510.24214); scope/clip_encoder.py.
Departures: the count is that of an image, where the code divides one among the images of a batch
(meant as crops of one image); crops of one image keep the order that the model gives them; a patch
of zeros covers nothing (the code divides by its norm); the share to keep is rounded up, where the
authors' command line gives a count; ties are broken stably; attention and similarity are float32 in
a half-precision model too.
Kept as in the code, and surprising: saliency is the sum over heads, not their mean, which matters
where it is added.
Shapes: B images, N patches of an image, K kept, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import Plan, Site, check_known, register, take
from bench.core.kinds import ProjectorReducer
from methods.algorithms.ranking import class_attention


@torch.no_grad()
def covering(x_BNC: Tensor, saliency_BN: Tensor, count: int, add: bool) -> tuple[Tensor, Tensor]:
    """(B,K) patches in the order of selection, and (B,N) how well each patch is covered by them.

    A patch is covered by its cosine to the selected one that is most like it, by 0 at least; what a
    candidate would add to this over all patches is multiplied by its saliency (or added to it).
    """
    x_BNC = F.normalize(x_BNC.float(), dim=-1)
    alike_BNN = x_BNC @ x_BNC.transpose(1, 2)
    covered_BN, chosen = torch.zeros_like(saliency_BN), []
    taken_BN = torch.zeros_like(saliency_BN, dtype=torch.bool)
    for _ in range(count):
        gain_BN = (alike_BNN - covered_BN[:, None]).clamp_min(0).sum(2)
        score_BN = gain_BN + saliency_BN if add else gain_BN * saliency_BN
        chosen.append(score_BN.masked_fill(taken_BN, -torch.inf).argmax(1, keepdim=True))
        taken_BN = taken_BN.scatter(1, chosen[-1], True)
        covered_BN = torch.maximum(covered_BN, take(alike_BNN, chosen[-1])[:, 0])
    return torch.cat(chosen, 1), covered_BN


@register("scope", source="Deng et al., NeurIPS 2025", url="https://arxiv.org/abs/2510.24214")
@dataclass(frozen=True)
class Scope(ProjectorReducer):
    """Keeps patches one by one, each by its class attention and what it adds to those covered.

    Saliency, the class attention to the power of `alpha`, and the gain in coverage are combined by
    "multiply" or "add".
    """

    alpha: float = 1.0
    combine: str = "multiply"

    needs_anchor: ClassVar[bool] = True
    newlines: ClassVar[bool] = False
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 1 / 9}

    def __post_init__(self) -> None:
        """Refuse another way to combine."""
        check_known("scope has no combine", self.combine, ("multiply", "add"))

    def plan(self, site: Site, r: int) -> Plan:
        """Keep the selected patches, in ascending order of position."""
        fixed, patches = site.split()
        saliency_BN = (class_attention(site).gather(1, patches) * site.q.shape[1]) ** self.alpha
        add = self.combine == "add"
        chosen, _ = covering(take(site.x, patches), saliency_BN, patches.shape[1] - r, add)
        return Plan(torch.cat([fixed, patches.gather(1, chosen)], 1).sort(1).values)
