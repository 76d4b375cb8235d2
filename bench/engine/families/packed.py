"""Reduced passes where the patches of all images lie packed in one sequence (Qwen2-VL, 2.5 and 3).

What goes token by token (norms, projections, MLPs) runs over the whole sequence, and attention runs
image by image, or window by window, as in the plain model. Methods see one image at a time, its
patches in rows, so that images may differ in size.

Behind the image encoder patches are put back into their 2x2 groups, each of which becomes one token
of the language model: a patch is shown by the token that it was merged into, a dropped one by the
mean of those that remain in its group, and a group in which none remains is a removed token. The
meta device cannot tell which groups those are; there as many remain as on average after so many
drops at random places.

Shape suffixes: N patches of an image, M tokens and L groups that remain, G groups, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core import Plan, observe
from bench.core.site import ProjectorSite
from bench.engine.families.attended import frame_by_frame
from bench.engine.families.one_image import OneImage
from bench.engine.families.projector import ProjectorPass
from bench.engine.forward import Pass
from bench.engine.reduction import Reduction

if TYPE_CHECKING:
    from bench.engine.families.qwen_vl import MergerTower, PackedTower


class PackedPass(Pass):
    """An image encoder's pass over packed patches (N,C).

    Attributes:
        images: the passes of the images, and of each slice of a video in time; `lengths` says how
            many tokens each has now.
        slices: how many of these an image (1) or a video is made of.
    """

    tower: PackedTower

    def forward(
        self, plain: Callable[..., Any], hidden_states: Tensor, grid_thw: Tensor, **kw: Any
    ) -> Any:
        """The image encoder as a whole, which says what shape its images have.

        It runs once for a prompt's images and once for its videos.
        """
        grids = grid_thw.tolist()
        self.slices = [t for t, _, _ in grids]
        shapes = full = [(h, w) for t, h, w in grids for _ in range(t)]
        if self.tower.size is not None:
            hidden_states, grid_thw = self.tower.smaller(hidden_states, full)
            shapes = [(h, w) for _, h, w in grid_thw.tolist()]
            kw |= self.tower.positions(grid_thw, hidden_states.device)
        sizes = zip(shapes, full, strict=True)
        self.images = [OneImage(self.tower, self.reductions, *size) for size in sizes]
        self.number_batch()
        for image in self.images:
            image.draw = self.draw
        self.first = self.lengths = [h * w for h, w in shapes]
        readers = [reduction.reducer for reduction in self.upstream["projector"].reductions]
        self.reads = {block for r in readers for block in self.images[0].blocks_read(r)}
        out = plain(hidden_states, grid_thw=grid_thw, **kw)
        projector: Any = self.upstream["projector"]
        out.pooler_output = projector.tokens  # in rows
        if projector.deep is not None:
            out.deepstack_features = projector.deep.split(projector.tokens.shape[1], 1)
        return out

    def deepen(self, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Features (L,D) that DeepStack makes of the groups that remain; each image keeps its own.

        Args:
            plain: the merger behind the present block.
            x: (M,C) tokens of all images.
        """
        appended = self.appends if self.layer < self.depth - 1 else 0
        pieces = zip(self.images, x.split(self.lengths), strict=True)
        groups = [image.groups(piece[: len(piece) - appended]) for image, piece in pieces]
        y = plain(torch.cat([tokens for tokens, _ in groups], 1)[0].view(-1, x.shape[1]))
        lengths = [len(at) for _, at in groups]
        for image, tokens, (_, at) in zip(self.images, y.split(lengths), groups, strict=True):
            image.deepen(tokens, at)
        return y

    def block(
        self, layer: int, block: nn.Module, x: Tensor, position_embeddings: Any, **kw: Any
    ) -> Tensor:
        """One block: attend, reduce, feed. (N,C) -> (M,C)."""
        x = self._each(OneImage.before_attention, layer, x)
        n_in, self.turn, self.layer = self.lengths, iter(self.images), layer
        kw["cu_seqlens"] = torch.tensor([0, *accumulate(n_in)], dtype=torch.int32)
        kw["position_embeddings"] = self._angles(position_embeddings)
        x = self.tower.attend(block, x, self, None, kw)
        if layer in self.tower.windowed:
            for observer in observe.OBSERVERS:
                for image in self.images:
                    observer.windows(self.tower.name, layer, image.parts().pairs)
        x = self._each(OneImage.after_attention, layer, x)
        x = self.tower.feed(block, x)
        for observer in observe.OBSERVERS:
            for counts in zip(n_in, self.lengths, strict=True):
                observer.block(self.tower.name, layer, *counts)
        if self.appends and layer == self.depth - 1:
            x = self._each(lambda image, _, tokens: image._finish(tokens), layer, x)
        return x

    def _each(
        self, step: Callable[[OneImage, int, Tensor], Tensor], layer: int, x: Tensor
    ) -> Tensor:
        """Let each image take a step with its own tokens. (N,C) -> (M,C)."""
        if not self.reductions:
            return x
        pieces = x.split(self.lengths)
        done = [
            step(image, layer, piece[None])[0]
            for image, piece in zip(self.images, pieces, strict=True)
        ]
        self.lengths = [len(piece) for piece in done]
        return torch.cat(done)

    def _angles(self, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Cosine and sine (M,D) at each token's place; what a method appended has none: 1 and 0."""
        if not any(image.changed for image in self.images):
            return angles
        padded = [
            [F.pad(part, (0, 0, 0, self.appends), value=value) for part in angle.split(self.first)]
            for angle, value in zip(angles, (1.0, 0.0), strict=True)
        ]
        return tuple(
            torch.cat([part[image.place[0]] for part, image in zip(each, self.images, strict=True)])
            for each in padded
        )

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, inner: Any, fused: bool
    ) -> Tensor:
        """The attention of the image whose turn it is."""
        image = next(self.turn)
        if self.layer in self.reads and not image.reduced:  # else groups are not whole
            image.note(self.layer, q, k, v, scale)
        if self.reductions:
            return image.attention(q, k, v, mask, scale, inner, fused)
        if self.layer in self.tower.windowed:
            return image.within(q, k, v, mask, scale, inner, fused)
        return inner(q, k, v, mask, scale)  # type: ignore[no-any-return]


class OneMerged(ProjectorPass):
    """The pass of the groups of one image, or of one video, frame after frame.

    Attributes:
        frames: how many equal parts its tokens have; 1 of an image, and once they are unequal.
        deep: (1,L,K*D) DeepStack's features of these groups, of K blocks side by side; None where
            there are none. They are merged as the groups are.
    """

    tower: MergerTower  # type: ignore[assignment]

    def __init__(
        self,
        tower: MergerTower,
        reductions: Sequence[Reduction],
        images: Sequence[OneImage],
        lengths: Sequence[int] = (),
    ) -> None:
        """Take over from the image encoder; `lengths` are tokens of each slice of a video."""
        super().__init__(tower, reductions)  # type: ignore[arg-type]
        self.image, self.images, self.lengths = images[0], images, lengths
        side = self.image.tower.side
        self.shape = self.image.shape[0] // side, self.image.shape[1] // side
        self.full = self.image.full[0] // side, self.image.full[1] // side
        self.expected = prod(self.full) * len(images)
        self.seen, *more = [image.seen_in_rows() for image in images]
        if more:
            blocks = set(self.seen).intersection(*more)
            self.seen = {
                b: frame_by_frame([seen[b] for seen in (self.seen, *more)]) for b in blocks
            }

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (M,C) -> the groups that still have one (1,L,4C)."""
        slices = x.split(self.lengths) if len(self.images) > 1 else (x,)
        each = [image.groups(some) for image, some in zip(self.images, slices, strict=True)]
        groups, places = zip(*each, strict=True)
        x = super().begin(torch.cat(groups, 1), mask)
        self.reduced = x.shape[1] < prod(self.shape) * len(groups)
        self.grid = None if self.reduced else self.shape
        self.frames = 1 if self.reduced else len(groups)
        self.place = torch.cat([self._placed(at, i) for i, at in enumerate(places)])[None]
        deep = [
            torch.cat(image.deep, 1)[at]
            for image, at in zip(self.images, places, strict=True)
            if image.deep
        ]
        self.deep = torch.cat(deep)[None] if deep else None
        return x

    def _placed(self, at: Tensor, frame: int) -> Tensor:
        """(L,) places of a frame's groups among all that the model counts on.

        Of a smaller image these are the places on the whole one's grid.
        """
        rows, columns = self.shape
        row = at // columns * self.full[0] // rows + frame * self.full[0]
        place: Tensor = row * self.full[1] + at % columns * self.full[1] // columns
        return place

    def _site(self, layer: int, x: Tensor) -> ProjectorSite:
        site: ProjectorSite = super()._site(layer, x)
        return replace(site, frames=self.frames)

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        super()._follow(plan, n, layer)
        self.frames = 1 if self.grid is None else self.frames

    def _applied(self, plan: Plan, x: Tensor) -> Tensor:
        if self.deep is not None:
            self.deep, _ = plan.apply(self.deep, self.size, self.vacant)
        return super()._applied(plan, x)

    def behind(self, x: Tensor, n_in: int) -> Tensor:
        """Tokens (1,L,D) -> as many rows as the language model counts on; `deep` likewise."""
        x = super().behind(x, n_in)
        if self.deep is not None and self.removed:
            self.deep = self._marked(self.deep)
        return x


class MergerPass(ProjectorPass):
    """The passes of all images and videos between their encoder and the language model.

    Attributes:
        tokens: (G,D) what the language model gets, an image's groups in rows.
        deep: (G,K*D) what DeepStack adds to these, of K blocks side by side; None without it.
    """

    tower: MergerTower  # type: ignore[assignment]

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """Put groups together, act ahead of the merger, merge, act behind it. (M,C) -> (G,D)."""
        vision: Any = self.upstream["vision"]
        each, lengths = iter(vision.images), iter(vision.lengths)
        images = [
            OneMerged(self.tower, self.reductions, list(islice(each, n)), list(islice(lengths, n)))
            for n in vision.slices
        ]
        self.number_batch()
        for merged in images:
            merged.draw = self.draw
        pieces = x.split([sum(image.lengths) for image in images])
        ahead = [image.ahead(piece) for image, piece in zip(images, pieces, strict=True)]
        y = self.tower.attend(block, torch.cat(ahead, 1)[0], self, None, {})
        groups = [x.shape[1] for x in ahead]
        behind = [
            image.behind(tokens[None], n)
            for image, tokens, n in zip(images, y.split(groups), groups, strict=True)
        ]
        removed = sum(image.removed for image in images)
        # images may come ahead of videos, and features be shown once more
        self.removed = removed if y.is_meta else max(removed, self.removed)
        self.tokens = torch.cat(behind, 1)[0]
        deep = [image.deep for image in images if image.deep is not None]
        self.deep = torch.cat(deep, 1)[0] if deep else None
        return self.tokens
