"""FasterVLM: keep the image tokens that the class token attends to most.

Source: Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make
VLM Inference Faster", 2024 (arXiv:2412.01818v1); llava/model/llava_arch.py.
Departures: the share to keep is rounded up, where the authors' command line gives a count; ties are
broken stably; the class attention is float32 in a half-precision model too.
Shapes: B images, N tokens of an image with its class token, M tokens kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from bench.core import Plan, Reducer, Site, register


def class_attention(site: Site) -> Tensor:
    """(B,N) what the class token attends to, mean over heads, in float32."""
    return replace(site, q=site.q.float(), k=site.k.float()).anchor_attention()


def ranked(score_BN: Tensor, protect_BN: Tensor) -> Tensor:
    """(B,N) positions by descending score, protected ones ahead; the lower position first."""
    score_BN = score_BN.masked_fill(protect_BN, float("inf"))
    return score_BN.argsort(dim=1, descending=True, stable=True)


@register("fastervlm", source="Zhang et al., 2024", url="https://arxiv.org/abs/2412.01818v1")
@dataclass(frozen=True)
class FasterVLM(Reducer):
    """Keeps the patches the class token attends to most, ahead of the language model's projector.

    The attention is that of the block whose output the language model gets. Patches stay in order.
    """

    acts: ClassVar[str] = "before the projector"
    towers: ClassVar[tuple[str, ...]] = ("projector",)
    before: ClassVar[bool] = True
    max_share: ClassVar[float] = 1.0
    least: ClassVar[int] = 1
    needs_anchor: ClassVar[bool] = True
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.25}

    def plan(self, site: Site, r: int) -> Plan:
        """Keep the highest class attention, in ascending order of position."""
        order_BN = ranked(class_attention(site), site.protect)
        return Plan(order_BN[:, : site.x.shape[1] - r].sort(1).values)
