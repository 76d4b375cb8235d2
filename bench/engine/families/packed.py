"""Reduced passes where the patches of all images lie packed in one sequence (Qwen2-VL).

What goes token by token (norms, projections, MLPs) runs over the whole sequence, and attention runs
image by image, as in the plain model. Methods see one image at a time, so that images may differ in
size.

Behind the image encoder patches are put back into their 2x2 groups, each of which becomes one token
of the language model: a patch is shown by the token that it was merged into, a dropped one by the
mean of those that remain in its group, and a group in which none remains is a removed token. The
meta device cannot tell which groups those are; there as many remain as on average after so many
drops at random places.

Shape suffixes: N patches of an image, M tokens and L groups that remain, G groups, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core import Plan, Reducer, observe
from bench.core.tensors import take
from bench.engine.families.attended import Attended, blocks_read, places
from bench.engine.families.projector import ProjectorPass
from bench.engine.forward import Pass
from bench.engine.reduction import Reduction

if TYPE_CHECKING:
    from bench.engine.families.qwen2_vl import MergerTower, PackedTower


def dropped_by(plan: Plan, n: int) -> int:
    """How many of `n` tokens a plan removes that become part of no other."""
    merged = 0 if plan.src is None else plan.src.shape[1]
    return n - plan.keep.shape[1] - merged if plan.extra is None else 0


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
            self.slot = in_rows(*self.shape, self.tower.side, x.device)[None]
            order = torch.cat([self.slot.argsort(1), self.place[:, self.slot.shape[1] :]], 1)
            x, self.place = take(x, order), order
            if self.qkv is not None:
                q, k, v = (t[:, :, order[0]] for t in self.qkv)
                self.qkv = q, k, v
        return super()._reduce(reduction, layer, x, r)

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        super()._follow(plan, n, layer)
        self.place = places(plan, self.place)
        self.dropped += dropped_by(plan, n)

    def groups(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (M,C) -> the groups that still have a token (1,L,4C), and (L,) which those are."""
        four, C = self.tower.side**2, x.shape[1]
        if not self.reduced:
            x = x.reshape(1, -1, four * C)
            return x, torch.arange(x.shape[1], device=x.device)
        assert self.slot is not None
        patches, remaining = grouped(x, self.slot.view(-1, four), self.dropped)
        return patches.reshape(1, -1, four * C), remaining


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


class PackedPass(Pass):
    """An image encoder's pass over packed patches (N,C).

    Attributes:
        images: the passes of the images; `lengths` says how many tokens each has now.
    """

    tower: PackedTower

    def forward(
        self, plain: Callable[..., Any], hidden_states: Tensor, grid_thw: Tensor, **kw: Any
    ) -> Any:
        """The image encoder as a whole, which says what shape its images have."""
        shapes = full = [(h, w) for t, h, w in grid_thw.tolist() for _ in range(t)]
        if self.tower.size is not None:
            hidden_states, grid_thw = self.tower.smaller(hidden_states, full)
            shapes = [(h, w) for _, h, w in grid_thw.tolist()]
            rows = [in_rows(*shape, self.tower.side) for shape in shapes]
            at = [torch.stack([i // w, i % w], 1) for i, (_, w) in zip(rows, shapes, strict=True)]
            kw["position_ids"] = torch.cat(at).to(hidden_states.device)
        sizes = zip(shapes, full, strict=True)
        self.images = [OneImage(self.tower, self.reductions, *size) for size in sizes]
        self.number_batch()
        for image in self.images:
            image.draw = self.draw
        self.first = self.lengths = [h * w for h, w in shapes]
        readers = [reduction.reducer for reduction in self.upstream["projector"].reductions]
        self.reads = {block for r in readers for block in self.images[0].blocks_read(r)}
        return plain(hidden_states, grid_thw=grid_thw, **kw)

    def block(
        self, layer: int, block: nn.Module, x: Tensor, position_embeddings: Any, **kw: Any
    ) -> Tensor:
        """One block: attend, reduce, feed. (N,C) -> (M,C)."""
        x = self._each(OneImage.before_attention, layer, x)
        n_in, self.turn, self.layer = self.lengths, iter(self.images), layer
        kw["cu_seqlens"] = torch.tensor([0, *accumulate(n_in)], dtype=torch.int32)
        kw["position_embeddings"] = self._angles(position_embeddings)
        x = self.tower.attend(block, x, self, None, kw)
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
            image.seen[self.layer] = Attended(q, k, v, None, scale)
        if not self.reductions:
            return inner(q, k, v, mask, scale)  # type: ignore[no-any-return]
        return image.attention(q, k, v, mask, scale, inner, fused)


class OneMerged(ProjectorPass):
    """The pass of one image's groups."""

    tower: MergerTower  # type: ignore[assignment]

    def __init__(
        self, tower: MergerTower, reductions: Sequence[Reduction], image: OneImage
    ) -> None:
        """Take over from the image encoder."""
        super().__init__(tower, reductions)  # type: ignore[arg-type]
        self.image, side = image, image.tower.side
        self.shape = image.shape[0] // side, image.shape[1] // side
        self.full = image.full[0] // side, image.full[1] // side
        self.expected = prod(self.full)
        self.seen = {} if image.reduced or image.appends else image.seen

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (M,C) -> the groups that still have one (1,L,4C)."""
        x, at = self.image.groups(x)
        x = super().begin(x, mask)
        rows, columns = self.shape
        self.reduced = x.shape[1] < rows * columns
        self.grid = None if self.reduced else self.shape
        # of a smaller image: places on the grid that the model counts on
        row = at // columns * self.full[0] // rows
        self.place = (row * self.full[1] + at % columns * self.full[1] // columns)[None]
        return x


class MergerPass(ProjectorPass):
    """The passes of all images between their encoder and the language model."""

    tower: MergerTower  # type: ignore[assignment]

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """Put groups together, act ahead of the merger, merge, act behind it. (M,C) -> (G,D)."""
        vision: Any = self.upstream["vision"]
        images = [OneMerged(self.tower, self.reductions, image) for image in vision.images]
        self.number_batch()
        for merged in images:
            merged.draw = self.draw
        pieces = x.split(vision.lengths)
        ahead = [image.ahead(piece) for image, piece in zip(images, pieces, strict=True)]
        y = self.tower.attend(block, torch.cat(ahead, 1)[0], self, None, {})
        lengths = [groups.shape[1] for groups in ahead]
        behind = [
            image.behind(tokens[None], n)
            for image, tokens, n in zip(images, y.split(lengths), lengths, strict=True)
        ]
        self.removed = sum(image.removed for image in images)
        return torch.cat(behind, 1)[0]
