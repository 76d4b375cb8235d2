"""Reduced passes where patches are joined to groups ahead of the projector, image by image.

All images, or tiles of images, are squares of one size, in one batch. A group of patches becomes
one token of the language model, and at the projector such a group is a token. As in Qwen2-VL
(`bench.engine.families.packed`), merged patches go back to their places before they are joined,
and a token is removed where all patches of its group were dropped.

Shape suffixes: I images, N patches and G groups of one, J patches of a group, L groups that remain,
M tokens that remain, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from bench.core import Plan, Reducer
from bench.core.errors import Unsupported
from bench.engine.families.attended import Attended
from bench.engine.families.one_image import dropped_by, grouped, in_rows
from bench.engine.families.packed import OneMerged
from bench.engine.families.projector import NormedPass, ProjectorPass

if TYPE_CHECKING:
    from bench.engine.families.joined_towers import JoinedImageTower, JoinedTower


class JoinedImagePass(NormedPass):
    """An image encoder's pass that keeps its output for the groups.

    Attributes:
        tokens: (I,M,C) behind the final norm, class tokens in front.
        rows: patches along a side of an image.
        dropped: patches of each image that were removed and became part of no other.
    """

    tower: JoinedImageTower

    def forward(
        self,
        plain: Callable[..., Any],
        pixel_values: Tensor,
        patch_attention_mask: Tensor | None = None,
        **kw: Any,
    ) -> Any:
        """The image encoder as a whole, of images (I,C,H,W), which are made smaller if asked for.

        Raises:
            Unsupported: an image is padded to the size of another.
        """
        if patch_attention_mask is not None and not bool(patch_attention_mask.all()):
            raise Unsupported(
                "images that are padded to one size are not supported under reduction: let the "
                "processor cut them into tiles"
            )
        if self.tower.size is not None:
            pixel_values = self.tower.smaller(pixel_values)
            if "interpolate_pos_encoding" in signature(plain).parameters:
                kw["interpolate_pos_encoding"] = True
        return plain(pixel_values, **kw)

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Forget the images before."""
        self.dropped, self.rows = 0, isqrt(x.shape[1] - self.tower.prefix)
        return super().begin(x, None)

    def _mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        return None if self.changed else mask

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        super()._follow(plan, n, layer)
        self.dropped += dropped_by(plan, n)

    def normed(self, plain: Callable[..., Tensor], x: Tensor) -> Tensor:
        """The norm of (I,M,C) -> (I,N,C), since the model's own code joins all patches."""
        self.tokens = x = plain(x)
        return self.restore(x) if self.changed else x

    def groups(self) -> tuple[Tensor, Tensor]:
        """The patches (L,J,C) of all groups with a token, and (L,) which of the I*G they are."""
        assert self.slot is not None
        (images, n), side = self.tokens.shape[:2], self.tower.side
        order = in_rows(self.rows, self.rows, side, self.slot.device)
        slot = self.slot[:, self.tower.prefix + order]
        first = torch.arange(0, images * n, n, device=slot.device)[:, None]
        slot = torch.where(slot < 0, slot, slot + first).view(-1, side**2)
        return grouped(self.tokens.flatten(0, 1), slot, self.dropped * images)


@dataclass(frozen=True)
class Tile:
    """One image of a batch whose patches were reduced, for `OneMerged`.

    Attributes:
        remaining: its groups (1,L,C) that remain, and (L,) which they are.
        run: the pass of the batch.
        shape, full: rows and columns of its patches, and of those that the model counts on.
    """

    remaining: tuple[Tensor, Tensor]
    run: JoinedImagePass
    shape: tuple[int, int]
    full: tuple[int, int]
    reduced = True
    deep: ClassVar[tuple[Tensor, ...]] = ()  # which no other model than Qwen's has

    @property
    def tower(self) -> JoinedImageTower:
        """The image encoder."""
        return self.run.tower

    @property
    def reductions(self) -> Any:
        """The methods that reduced it."""
        return self.run.reductions

    def blocks_read(self, reader: Reducer) -> tuple[int, ...]:
        """The blocks whose attention a projector's method looks at."""
        return self.run.blocks_read(reader)

    def groups(self, _: Tensor) -> tuple[Tensor, Tensor]:
        """Those that remain, and which they are."""
        return self.remaining

    def seen_in_rows(self) -> dict[int, Attended]:
        """Nothing: the attention of its blocks is not that of the tokens that remain."""
        return {}


class JoinedPass(ProjectorPass):
    """The state between the image encoder and the language model."""

    tower: JoinedTower

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """Methods ahead of the projection, the projection, methods behind it."""
        run: Any = self.upstream["vision"]
        if not run.reduced:
            return super().block(layer, block, run.tokens, *args, **kw)
        self.number_batch()
        patches, at = run.groups()
        tiles = self._tiles(run, self.tower.join(patches), at)
        ahead = [tile.ahead(patches) for tile in tiles]
        lengths = [groups.shape[1] for groups in ahead]
        y = self.tower.attend(block, torch.cat(ahead, 1), self, None, {})
        behind = [
            tile.behind(tokens, n)
            for tile, tokens, n in zip(tiles, y.split(lengths, 1), lengths, strict=True)
        ]
        self.removed = sum(tile.removed for tile in tiles)
        return torch.cat(behind)

    def _tiles(self, run: JoinedImagePass, groups: Tensor, at: Tensor) -> list[OneMerged]:
        """The passes of single images, of which `groups` (L,C) remain `at` (L,)."""
        images, cells = len(run.tokens), (run.rows // self.tower.side) ** 2
        if at.is_meta:
            counts = [len(at) // images + (i < len(at) % images) for i in range(images)]
        else:  # waits for a GPU, once for all images
            counts = (
                (at[:, None] // cells == torch.arange(images, device=at.device)).sum(0).tolist()
            )
        full = isqrt(self.tower.whole) * self.tower.side
        sides: Any = (run.rows, run.rows), (full, full)
        pieces = zip(groups.split(counts), (at % cells).split(counts), strict=True)
        tiles: list[Any] = [Tile((some[None], at), run, *sides) for some, at in pieces]
        tower: Any = self.tower
        return [OneMerged(tower, self.reductions, [tile], [len(groups)]) for tile in tiles]

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (I,M,C) of which none were removed -> their groups (I,G,C)."""
        run: Any = self.upstream["vision"]
        prefix, side = run.tower.prefix, self.tower.side
        order = prefix + in_rows(run.rows, run.rows, side, x.device).expand(len(x), -1)
        self.image, self.seen = run, {b: a.of(order) for b, a in run.seen.items()}
        self.fixed, self.expected = 0, self.tower.whole
        x = self._begun(self.tower.joined(x[:, prefix:]))
        self.grid = self.tower.grid(self.first)
        if self.first < self.tower.patches:
            self.place = self._scaled(self.place, self.first)
        return x
