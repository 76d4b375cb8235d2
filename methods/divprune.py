"""DivPrune: keep the image tokens that lie farthest apart.

Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
CVPR 2025 (arXiv:2503.02175), §3; LLaVA/llava/model/llava_arch.py.
Departures: the image's tokens are found by what they are, where the code counts on 35 words ahead
of them; each sample of a batch is selected by itself (the code cuts all by the first one's
positions); a token is never selected twice, also where tokens coincide; distances are float32 in a
half-precision model too.
Shapes: B samples, N image tokens, K kept, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import Plan, Site, register, take
from bench.core.kinds import LanguageReducer


@torch.no_grad()
def far_apart(x_BNC: Tensor, count: int) -> Tensor:
    """(B,K) tokens in the order of selection, each the farthest from those selected so far.

    Distance is 1 - cosine, to the nearest of them; the first token's nearest other token is
    farthest away. Of equal ones the lower position is selected.
    """
    x_BNC = F.normalize(x_BNC.float(), dim=-1)
    distance_BNN = 1 - x_BNC @ x_BNC.transpose(1, 2)
    nearest_BN = distance_BNN.topk(min(2, x_BNC.shape[1]), dim=1, largest=False).values[:, -1]
    chosen = [nearest_BN.argmax(1, keepdim=True)]
    nearest_BN = torch.full_like(nearest_BN, torch.inf)
    for _ in range(count - 1):
        nearest_BN = torch.minimum(nearest_BN, take(distance_BNN, chosen[-1])[:, 0])
        nearest_BN = nearest_BN.scatter(1, chosen[-1], -torch.inf)
        chosen.append(nearest_BN.argmax(1, keepdim=True))
    return torch.cat(chosen, 1)


@register(
    "divprune",
    source="Alvar et al., CVPR 2025, §3",
    url="https://arxiv.org/abs/2503.02175",
    acts="before the language model",
)
@dataclass(frozen=True)
class DivPrune(LanguageReducer):
    """Keeps the image tokens that lie farthest apart, at the input of the language model.

    The positions of the words that follow count on without gaps.
    """

    renumbers: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.098, "layers": (0,)}

    def kept(self, rate: float, tokens: int, fixed: int) -> int:
        """The share to keep is rounded to the nearest count, a half to the even one."""
        return round(rate * tokens)

    def plan(self, site: Site, r: int) -> Plan:
        """Keep the words and the selected tokens, in ascending order of position."""
        fixed, image = site.split()
        chosen = far_apart(take(site.x, image), image.shape[1] - r)
        return Plan(torch.cat([fixed, image.gather(1, chosen)], 1).sort(1).values)
