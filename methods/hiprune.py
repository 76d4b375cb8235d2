"""HiPrune: keep what the image encoder's middle and last layers attend to.

Source: Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in
Vision-Language Models", 2025 (arXiv:2508.00553); LLaVA/llava/model/llava_arch.py,
Qwen2_5_VL/qwen2_5_vl_HiPrune.py.
Departures: the grid is the image's own, where the code for LLaVA knows 24 by 24 alone; where
anchors and neighbours are more than the budget the list is cut, neighbours first (the code
crashes); crops of one image keep the order that the model gives them; the share to keep is rounded
up, where the code takes a count or rounds to the nearest; ties are broken stably; attention is
float32 in a half-precision model too.
Kept as in the code, and surprising: the neighbours to the left and right of a patch at the border
are in the row above and below; those beyond the first and last patch are these themselves.
Shapes: B images, N patches of an image, A anchors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.core import BenchError, Plan, Unsupported, register
from bench.core.kinds import Adaptive, ProjectorReducer
from bench.core.site import ProjectorSite
from methods.algorithms.ranking import precise, ranked


def with_neighbours(at_BA: Tensor, rows: int, columns: int) -> Tensor:
    """(B,5A) patches of a grid, and those before, behind, above and below them, as in the code.

    The frames of a video have a grid each, and no neighbours in time.
    """
    n = rows * columns
    within_BA = at_BA % n
    near = [(within_BA + shift).clamp(0, n - 1) for shift in (0, -1, 1, -columns, columns)]
    return (torch.stack(near, -1) + (at_BA - within_BA)[..., None]).flatten(1)


@register("hiprune", source="Liu et al., 2025", url="https://arxiv.org/abs/2508.00553")
@dataclass(frozen=True)
class HiPrune(ProjectorReducer, Adaptive):
    """Keeps patches that a middle layer attends to most, their neighbours, and those of a late one.

    Anchors, a share of `alpha` / 5 of those kept, receive most in the `object_layer`, and bring
    their four neighbours along; the others (registers) receive most in the block that makes the
    features. `object_layer` counts from 1 (the authors' is 9 of 24, for Qwen2.5-VL 16 of 32) or is
    a share of the encoder's depth. With `recount`, as in the authors' code for Qwen2.5-VL, anchors
    and neighbours may be counted once more as registers, and fewer patches stay.
    """

    alpha: float = 0.1
    object_layer: float = 9 / 24
    recount: bool = False

    adaptive: ClassVar[bool] = False  # type: ignore[misc]
    budget: ClassVar[dict[str, Any]] = {"keep_rate": 1 / 3}

    def __post_init__(self) -> None:
        """Refuse what is no share and no layer."""
        if not 0 <= self.alpha <= 1:
            raise BenchError("hiprune: alpha must be a share in [0, 1]")
        if self.object_layer <= 0 or (self.object_layer >= 1 and self.object_layer % 1):
            raise BenchError(
                "hiprune: object_layer must be a layer from 1, or a share of the depth"
            )
        object.__setattr__(self, "adaptive", self.recount)

    def also_reads(self, depth: int) -> tuple[int]:
        """The object layer, as a 0-based block."""
        layer = self.object_layer
        if layer > depth:
            raise BenchError(f"hiprune: object_layer {layer} is outside of the encoder's {depth}")
        return (int(layer) - 1 if layer >= 1 else max(int(layer * depth), 1) - 1,)

    def plan(self, site: ProjectorSite, r: int) -> Plan:  # type: ignore[override]
        """Keep anchors, neighbours and registers, in ascending order of position."""
        if site.grid is None:
            raise Unsupported("method 'hiprune' needs patches in a grid, and here they form none")
        fixed, patches = site.split()
        kept = patches.shape[1] - r
        middle_BN, late_BN = (
            precise(view).received().gather(1, patches) for view in (site.further[0], site)
        )
        none = torch.zeros_like(late_BN, dtype=torch.bool)
        anchor_BA = ranked(middle_BN, none)[:, : round(kept * self.alpha / 5)]
        anchors = none.scatter(1, anchor_BA, True)
        near = none.scatter(1, with_neighbours(anchor_BA, *site.grid), True)
        if self.recount:  # what a patch receives in sum is 1 in the mean
            late_BN = late_BN * site.q.shape[2] - near.to(late_BN.dtype)
            registers = ranked(late_BN, none).argsort(1) < kept - near.sum(1, keepdim=True)
            late_BN = registers.to(late_BN.dtype)
        score_BN = torch.where(near, 2.0 + anchors, late_BN)
        order = ranked(score_BN, none)[:, :kept]
        if not self.recount:
            return Plan(torch.cat([fixed, patches.gather(1, order.sort(1).values)], 1))
        filled = score_BN.gather(1, order) > 0
        width = kept if order.is_meta else int(filled.sum(1).max())
        order = torch.where(filled, order, kept + r).sort(1).values[:, :width]
        keep = patches.gather(1, order.clamp(max=kept + r - 1))
        keep = keep.masked_fill(order == kept + r, -1)
        return Plan(torch.cat([fixed, keep], 1), padded=True)
