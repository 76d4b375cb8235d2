"""The pass of one image's patches, of several images that lie packed in one sequence.

Shape suffixes: N patches of an image, M tokens and L groups that remain, G groups, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.core import Plan, Reducer, Site
from bench.core.tensors import take
from bench.engine.families.attended import Attended, blocks_read, places
from bench.engine.families.windows import Partition
from bench.engine.forward import Pass
from bench.engine.masks import channel_attention
from bench.engine.reduction import Reduction

if TYPE_CHECKING:
    from bench.engine.families.qwen_vl import PackedTower


def dropped_by(plan: Plan, n: int) -> int:
    """How many of `n` tokens a plan removes that become part of no other."""
    merged = 0 if plan.src is None else plan.src.shape[1]
    return n - plan.keep.shape[1] - merged if plan.extra is None else 0


def grouped(x: Tensor, slot: Tensor, dropped: int) -> tuple[Tensor, Tensor]:
    """The groups of patches (L,J,C) that still have a token, and (L,) which those are.

    Args:
        x: (M,C) tokens.
        slot: (G,J) by group, which token its patches are now; -1 for a dropped one.
        dropped: how many patches were; on the meta device, which cannot tell which.
    """
    if slot.is_meta:
        gone = prod((dropped - i) / (slot.numel() - i) for i in range(slot.shape[1]))
        remaining = torch.arange(round(len(slot) * (1 - gone)), device=slot.device)
    else:
        remaining = (slot >= 0).any(1).nonzero()[:, 0]
    slot = slot[remaining]
    there = (slot >= 0)[..., None]
    patches = x[slot.clamp(min=0)] * there
    mean = patches.sum(1, keepdim=True) / there.sum(1, keepdim=True)
    return torch.where(there, patches, mean.to(x.dtype)), remaining


def in_rows(h: int, w: int, side: int, device: Any = None) -> Tensor:
    """(N,) place of each patch of the sequence, counted from left to right, then downwards."""
    place = torch.arange(h * w, device=device)
    return place.view(h // side, side, w // side, side).transpose(1, 2).flatten()


class OneImage(Pass):
    """The pass of one image's patches, (1,N,C) at first.

    Attributes:
        shape: rows and columns of its patches.
        full: rows and columns that the model counts on: more, where images are made smaller.
        place: (1,M) patch whose position each token has, by its index in the sequence.
        dropped: how many patches were removed and merged into no other.
        windows: how its groups lie in windows, in a model whose attention has some.
        inside: the latest attention was within these.
        deep: (G,D) features that DeepStack made of its groups, zeros where none is left.
        seen: by block that the projector's methods read, what its attention saw.
    """

    tower: PackedTower

    def __init__(
        self,
        tower: PackedTower,
        reductions: Sequence[Reduction],
        shape: tuple[int, int],
        full: tuple[int, int],
    ) -> None:
        """Nothing is removed yet."""
        super().__init__(tower, reductions)
        self.shape, self.full, self.dropped, self.reduced = shape, full, 0, False
        self.seen: dict[int, Attended] = {}
        self.windows, self.inside = tower.in_windows(shape), False
        self.partition: Partition | None = None
        self.deep: list[Tensor] = []

    def blocks_read(self, reader: Reducer) -> tuple[int, ...]:
        """The blocks whose attention a projector's method looks at."""
        return blocks_read(reader, self.depth - 1, self.depth)

    def number_batch(self) -> None:
        """Keep the number of the batch that the image came in."""

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Start the image."""
        x = super().begin(x, mask)
        self.grid = self.shape
        self.place = torch.arange(x.shape[1], device=x.device)[None]
        return x

    def _reduce(self, reduction: Reduction, layer: int, x: Tensor, r: int) -> Tensor:
        """Ahead of the first reduction put the patches in rows, as methods count on a grid."""
        if not self.reduced:
            self.slot = self._in_rows(x.device)[None]
            order = torch.cat([self.slot.argsort(1), self.place[:, self.slot.shape[1] :]], 1)
            x, self.place = take(x, order), order
            if self.qkv is not None:
                q, k, v = (t[:, :, order[0]] for t in self.qkv)
                self.qkv = q, k, v
        return super()._reduce(reduction, layer, x, r)

    def _in_rows(self, device: torch.device) -> Tensor:
        """(N,) place of each patch of the sequence, counted from left to right, then downwards."""
        place = in_rows(*self.shape, self.tower.side, device)
        if self.windows is None:
            return place
        return place.view(-1, self.windows.each)[self.windows.order(device)].flatten()

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        super()._follow(plan, n, layer)
        self.place, self.partition = places(plan, self.place), None
        self.dropped += dropped_by(plan, n)

    # --- attention within windows --------------------------------------------------------------

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, inner: Any, fused: bool
    ) -> Tensor:
        """The attention, within windows where the block has them."""
        self.inside = self.windows is not None and self.layer in self.tower.windowed
        if not self.inside:
            return super().attention(q, k, v, mask, scale, inner, fused)

        def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
            return self.within(q, k, v, bias, scale, inner, fused)

        return super().attention(q, k, v, mask, scale, attend, fused=False)

    def note(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        """Keep what a block's attention sees, for methods of the projector."""
        window = None
        if self.windows is not None and layer in self.tower.windowed:
            window = self.windows.of_patches(q.device, self.appends)[None]
        self.seen[layer] = Attended(q, k, v, None, scale, window)

    def within(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Any, scale: float, inner: Any, fused: bool
    ) -> Tensor:
        """Attention (1,H,M,D) within each window."""

        def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            if bias is not None and self._by_channel(q, fused):
                return channel_attention(q, k, v, bias, scale)
            return inner(q, k, v, bias, scale)  # type: ignore[no-any-return]

        return self.parts().attention(q, k, v, bias, attend)

    def parts(self) -> Partition:
        """The present tokens in windows, worked out once after each removal."""
        windows = self.windows
        assert windows is not None
        if self.partition is None and not self.reduced:
            self.partition = Partition(windows.lengths, None, self.appends)
        elif self.partition is None:
            lengths, window = windows.lengths, self._window()[0]
            order = (window % (len(lengths) + 1)).argsort(stable=True)  # appended tokens are last
            self.partition = Partition(windows.remaining(window, self.appends), order, self.appends)
        return self.partition

    def _window(self) -> Tensor:
        """(1,M) the window of each token."""
        assert self.windows is not None
        return self.windows.of_patches(self.place.device, self.appends)[self.place]

    def _site(self, layer: int, x: Tensor) -> Site:
        site = super()._site(layer, x)
        return replace(site, window=self._window()) if self.inside else site

    # --- behind the encoder --------------------------------------------------------------------

    def groups(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (M,C) -> the groups that still have a token (1,L,4C), and (L,) which those are.

        Groups are in rows.
        """
        four, C = self.tower.side**2, x.shape[1]
        if not self.reduced:
            x = x.reshape(1, -1, four * C)
            return self._groups_in_rows(x, torch.arange(x.shape[1], device=x.device))
        assert self.slot is not None
        patches, remaining = grouped(x, self.slot.view(-1, four), self.dropped)
        return self._groups_in_rows(patches.reshape(1, -1, four * C), remaining)

    def _groups_in_rows(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Groups (1,L,4C) of these places (L,) in the sequence -> in rows, and places there."""
        if self.windows is None:
            return x, at
        at = self.windows.order(x.device)[at]
        order = at.argsort()
        return x[:, order], at[order]

    def seen_in_rows(self) -> dict[int, Attended]:
        """What blocks saw, of patches that stand group by group in rows; nothing once some went."""
        if self.reduced or self.appends:
            return {}
        if self.windows is None or not self.seen:
            return self.seen
        device, each = next(iter(self.seen.values())).q.device, self.windows.each
        order = self.windows.order(device).argsort()
        keep = (order[:, None] * each + torch.arange(each, device=device)).flatten()[None]
        return {block: attended.of(keep) for block, attended in self.seen.items()}

    def deepen(self, features: Tensor, at: Tensor) -> None:
        """Keep what DeepStack made (L,D) of the groups at these places (L,)."""
        groups = prod(self.shape) // self.tower.side**2
        if len(features) < groups:
            features = features.new_zeros(groups, features.shape[1]).index_copy(0, at, features)
        self.deep.append(features)
