"""FasterVLM: keep the image tokens that the class token attends to most.

Source: Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make
VLM Inference Faster", 2024 (arXiv:2412.01818v1); llava/model/llava_arch.py.
Departures: the share to keep is rounded up, where the authors' command line gives a count; where an
image is put together from crops, its padding is cut off as the model does it; ties are broken
stably; the class attention is float32 in a half-precision model too.
Shapes: B images, N tokens of an image with its class token, M tokens kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bench.core import Plan, Site, register
from bench.core.kinds import ProjectorReducer
from methods.algorithms.ranking import class_attention, keep_highest


@register("fastervlm", source="Zhang et al., 2024", url="https://arxiv.org/abs/2412.01818v1")
@dataclass(frozen=True)
class FasterVLM(ProjectorReducer):
    """Keeps the patches the class token attends to most, ahead of the language model's projector.

    The attention is that of the block whose output the language model gets. Patches stay in order.
    """

    needs_anchor: ClassVar[bool] = True
    newlines: ClassVar[bool] = False
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 0.25}

    def plan(self, site: Site, r: int) -> Plan:
        """Keep the highest class attention, in ascending order of position."""
        return keep_highest(class_attention(site), site, r)
