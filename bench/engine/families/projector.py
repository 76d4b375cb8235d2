"""Reduced passes between an image encoder and a language model.

`ImagePass` runs the image encoder and notes what its feature block saw; `ProjectorPass` runs the
methods ahead of the projector and behind it. What leaves the projector has as many rows as the
model's own code expects: those of removed tokens are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.core import Plan, Reducer, Site, observe
from bench.core.errors import Unsupported
from bench.core.kinds import ProjectorReducer
from bench.engine.forward import Pass
from bench.engine.reduction import Reduction

if TYPE_CHECKING:
    from bench.engine.families.vlm import ImageTower, ProjectorTower


class ImagePass(Pass):
    """An image encoder's pass that keeps what the projector and its methods look at.

    Attributes:
        features: (I,M,C) output of the feature block, without tokens that a method appended.
        reads: blocks whose attention the projector's methods look at.
        seen: by block, (q, k, v), the bias and the scale of its attention, for the survivors.
    """

    tower: ImageTower

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Forget the images before."""
        readers = self.upstream["projector"].reductions if self.tower.linked else ()
        self.reads = {_block_read(reader.reducer, self.tower) for reader in readers}
        self.seen: dict[int, tuple[tuple[Tensor, ...], Tensor | None, float | None]] = {}
        x = super().begin(x, mask)
        self.place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        return x

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """One block; the feature block's output is kept."""
        x = super().block(layer, block, x, *args, **kw)
        if layer == self.tower.feature:
            n = x.shape[1] if layer == self.depth - 1 else x.shape[1] - self.appends
            self.features, self.features_size = x[:, :n], self.size[:, :n]
            self.features_place = self.place[:, :n]
        return x

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kw: Any) -> Tensor:
        """The attention; q, k, v are kept where a method of the projector reads them."""
        out = super().attention(q, k, v, *args, **kw)
        if self.layer in self.reads:
            self.seen[self.layer] = (q, k, v), self.bias, self.scale
        return out

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        super()._follow(plan, n, layer)
        self.place = places(plan, self.place)
        if layer in self.seen:
            qkv, bias, scale = self.seen[layer]
            rows = plan.keep[:, None, :, None].expand(-1, qkv[0].shape[1], -1, qkv[0].shape[3])
            if bias is not None:
                bias = bias.gather(-1, plan.keep[:, None, None])
            self.seen[layer] = tuple(t.gather(2, rows) for t in qkv), bias, scale


def _block_read(reducer: Reducer, tower: ImageTower | ProjectorTower) -> int:
    """The vision block whose attention a projector's method looks at; -1 for none."""
    if not reducer.needs_anchor:
        return -1
    return tower.feature + (reducer.reads if isinstance(reducer, ProjectorReducer) else 0)


def places(plan: Plan, place: Tensor) -> Tensor:
    """(B,M+E) a kept token stays at its place, a made token takes that of its heaviest input.

    Where that place is kept, or the heaviest input of several, a made token takes the first place
    that no token has a claim to.
    """
    keep = plan.keep.clamp(min=0)
    if plan.extra is None:
        return place.gather(1, keep)
    heavy = plan.extra.abs().argmax(-1)
    wanted = torch.zeros_like(place).scatter_add(1, heavy, torch.ones_like(heavy))
    wanted = wanted.scatter_add(1, keep, torch.full_like(keep, 2))
    alone = wanted.gather(1, heavy) == 1
    free = (wanted == 0).to(torch.int8).argsort(dim=1, descending=True, stable=True)
    other = free.gather(1, ((~alone).cumsum(1) - 1).clamp_min(0))
    return place.gather(1, torch.cat([keep, torch.where(alone, heavy, other)], 1))


class ProjectorPass(Pass):
    """The state between an image encoder and a language model.

    Attributes:
        expected: tokens of an image that the language model's code counts on.
        removed: how many are missing, of all images (and crops of images) together.
        fixed: class tokens in front, while they are there: 0 or 1.
        place: (I,M) place of each token among the image's, class token included.
    """

    tower: ProjectorTower

    def __init__(self, tower: ProjectorTower, reductions: Sequence[Reduction]) -> None:
        """Nothing is removed yet."""
        super().__init__(tower, reductions)
        self.expected, self.removed = tower.whole, 0

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """Methods ahead of the projection, the projection, methods behind it."""
        self.number_batch()
        x = self.ahead(x)
        n_in = x.shape[1]
        return self.behind(self.tower.attend(block, x, self, None, {}), n_in)

    def ahead(self, x: Tensor) -> Tensor:
        """The features (I,N,C) -> those that the projection gets (I,M,C)."""
        x = self.begin(x, None)
        for reduction in self.before:
            x = self._step(reduction, 0, x)
        return self._without_class(x)

    def behind(self, x: Tensor, n_in: int) -> Tensor:
        """Projected tokens (I,M,C) -> as many rows as the language model counts on (I,N,C)."""
        for reduction in self.after:
            x = self._step(reduction, 0, x)
        for observer in observe.OBSERVERS:
            observer.block(self.tower.name, 0, n_in, x.shape[1])
        missing = self.expected - x.shape[1]
        self.removed = len(x) * missing
        return self._marked(x) if missing > 0 else x

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The features (I,M,C) that the model selected, or those with their class token."""
        self.changed = self.merged = self.reduced = self.padded = False
        self.fixed, self.anchor, self.class_stays = self.tower.prefix, None, False
        if self.tower.has_vision:
            image: Any = self.upstream["vision"]
            x, self.size, self.place = image.features, image.features_size, image.features_place
            self.reduced = image.reduced
            if image.initial - self.fixed < self.tower.patches:
                self.place = self._scaled(self.place, image.initial - self.fixed)
        else:
            self.size = torch.ones(*x.shape[:2], 1, device=x.device)
            self.place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        self.first = x.shape[1] - self.fixed
        self.grid = self.tower.grid(self.first) if not self.reduced else None
        self.protect = (torch.arange(x.shape[1], device=x.device) < self.fixed).expand(len(x), -1)
        self.slot = None
        if self.fixed:
            self.anchor = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return x

    def _scaled(self, place: Tensor, patches: int) -> Tensor:
        """Places on the grid of a smaller image -> places on the model's own grid."""
        side, full = int(patches**0.5), int(self.tower.patches**0.5)
        at = place - self.fixed
        row, column = (part * full // side for part in (at // side, at % side))
        return torch.where(at < 0, place, row * full + column + self.fixed)

    def _step(self, reduction: Reduction, layer: int, x: Tensor) -> Tensor:
        reducer, present = reduction.reducer, x.shape[1] - self.fixed
        r = reduction.count(layer, self.depth, present, self.first, self.grid)
        if not r:
            return x
        self.block_read = _block_read(reducer, self.tower)
        if isinstance(reducer, ProjectorReducer):
            self.class_stays = self.class_stays or reducer.keeps_class
        return self._reduce(reduction, layer, x, r)

    def _site(self, layer: int, x: Tensor) -> Site:
        site = super()._site(layer, x)
        site = replace(site, n_protected=self.fixed, prefix=self.fixed)
        if self.block_read < 0:
            return site
        image: Any = self.upstream["vision"]
        qkv, bias, scale = image.seen[self.block_read]
        n = x.shape[1]
        if qkv[0].shape[2] != n + image.appends:
            names = " and ".join(reduction.reducer.name for reduction in image.reductions)
            raise Unsupported(
                f"the attention of vision block {self.block_read} is not that of the tokens left: "
                f"give {names} layers= below {self.block_read}"
            )
        q, k, v = (t[:, :, :n] for t in qkv)
        bias = None if bias is None else bias[..., :n]
        return replace(site, q=q, k=k, v=v, bias=bias, scale=scale)

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        self.place = places(plan, self.place)
        self._carry(plan)

    def _without_class(self, x: Tensor) -> Tensor:
        """The class token goes no further, unless the model or a method wants it to."""
        if not self.tower.drops_class or self.class_stays:
            return x
        cut = self.fixed
        self.fixed, self.anchor = 0, None
        self.size, self.protect = self.size[:, cut:], self.protect[:, cut:]
        self.place = self.place[:, cut:]
        return x[:, cut:]

    def _marked(self, x: Tensor) -> Tensor:
        """(I,M,C) -> (I,N,C) with rows of NaN for what was removed."""
        x = x.masked_fill(self.size == 0, torch.nan)
        if not self.tower.grid_order:
            missing = x.new_full((len(x), self.expected - x.shape[1], x.shape[2]), torch.nan)
            return torch.cat([x, missing], 1)
        at = self.place - (self.tower.prefix if self.tower.drops_class else 0)
        # a class token that came along takes the first place that became free
        taken = torch.zeros(len(x), self.expected + 1, device=x.device)
        taken = taken.scatter(1, torch.where(at < 0, self.expected, at), 1)[:, : self.expected]
        at = torch.where(at < 0, taken.argmin(1, keepdim=True), at)
        out = x.new_full((len(x), self.expected, x.shape[2]), torch.nan)
        return out.scatter(1, at[..., None].expand_as(x), x)
