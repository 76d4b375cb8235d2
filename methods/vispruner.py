"""VisPruner: keep attended image tokens, and of the others those that differ.

Source: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token
Pruning in VLMs", ICCV 2025 (arXiv:2412.01818); llava/model/llava_arch.py.
Departures: where the list of the others has an odd length its first half is the longer one, and a
round drops at most half of the list (the authors' code crashes on both); the share to keep is
rounded up, where the authors' command line gives a count; ties are broken stably; attention and
similarity are float32 in a half-precision model too.
Shapes: B images, N tokens of an image with its class token, R tokens in the list, C channels.
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
def diverse(x_BNC: Tensor, listed_BR: Tensor, count: int, a_round: int) -> Tensor:
    """(B,count) of the listed positions, those most like others dropped, `a_round` at a time.

    In each round the tokens at even places of the list are compared with those at odd places; the
    survivors among them go to the front, the most similar ahead.
    """
    x_BNC = F.normalize(x_BNC.float(), dim=-1)
    while (length := listed_BR.shape[1]) > count:
        drop = min(a_round, length - count, length // 2)
        even_BA, odd_BA = listed_BR[:, ::2], listed_BR[:, 1::2]
        alike_BAA = take(x_BNC, even_BA) @ take(x_BNC, odd_BA).transpose(1, 2)
        order = alike_BAA.amax(-1).argsort(dim=1, descending=True, stable=True)
        listed_BR = torch.cat([even_BA.gather(1, order[:, drop:]), odd_BA], 1)
    return listed_BR


@register("vispruner", source="Zhang et al., ICCV 2025", url="https://arxiv.org/abs/2412.01818")
@dataclass(frozen=True)
class VisPruner(ProjectorReducer):
    """Keeps patches the class token attends to most, and as many again that are unlike each other.

    `important_ratio` is the share of the first among those kept.
    """

    important_ratio: float = 0.5
    per_iteration: int = 8

    needs_anchor: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.25}

    def __post_init__(self) -> None:
        """Refuse what cannot be counted."""
        if not 0 <= self.important_ratio <= 1:
            raise BenchError("vispruner: important_ratio must be a share in [0, 1]")
        if self.per_iteration < 1:
            raise BenchError("vispruner: per_iteration must be at least 1")

    def plan(self, site: Site, r: int) -> Plan:
        """Keep both kinds, in ascending order of position."""
        order_BN, fixed = ranked(class_attention(site), site.protect), site.n_protected
        kept = site.x.shape[1] - fixed - r
        first = fixed + int(kept * self.important_ratio)
        others = order_BN[:, first:]
        if first < fixed + kept:
            others = diverse(site.x, others, fixed + kept - first, self.per_iteration)
        else:
            others = others[:, :0]
        return Plan(torch.cat([order_BN[:, :first], others], 1).sort(1).values)
