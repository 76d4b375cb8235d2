"""Reduced passes between an image encoder and a language model.

`ImagePass` runs the image encoder and notes what its feature block saw; `ProjectorPass` runs the
methods ahead of the projector and behind it. What leaves the projector has as many rows as the
model's own code expects: those of removed tokens are NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core import Plan, Reducer, observe
from bench.core.errors import Unsupported
from bench.core.kinds import ProjectorReducer, VideoReducer
from bench.core.site import ProjectorSite
from bench.core.tensors import take
from bench.engine.families.attended import Attended, blocks_read, followed, places
from bench.engine.forward import Pass
from bench.engine.reduction import Reduction

if TYPE_CHECKING:
    from bench.engine.families.image_towers import ImageTower, ProjectorTower


class ImagePass(Pass):
    """An image encoder's pass that keeps what the projector and its methods look at.

    Attributes:
        features: (I,M,C) output of the feature block.
        cut: tokens that a method appended and that are not handed on among the features.
        reads: blocks whose attention the projector's methods look at.
        seen: by block, what its attention saw.
    """

    tower: ImageTower

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Forget the images before."""
        readers = self.upstream["projector"].reductions if self.tower.linked else ()
        self.reads = {block for reader in readers for block in self.blocks_read(reader.reducer)}
        self.seen: dict[int, Attended] = {}
        x = super().begin(x, mask)
        self.place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        return x

    def blocks_read(self, reader: Reducer) -> tuple[int, ...]:
        """The blocks whose attention a projector's method looks at."""
        return blocks_read(reader, self.tower.feature, self.depth)

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """The second half of a block; the feature block's output is kept."""
        x = super().feed(block, x)
        if self.layer == self.tower.feature:
            appender, room = self.appender, self.initial + self.appends - x.shape[1]
            handed_on = appender is not None and appender.handed_on and bool(self.tower.linked)
            self.cut = self.appends - min(self.appends, room) * handed_on
            n = x.shape[1] - self.cut
            self.features, self.features_size = x[:, :n], self.size[:, :n]
            self.features_place = self.place[:, :n]
        return x

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kw: Any) -> Tensor:
        """The attention; q, k, v are kept where a method of the projector reads them."""
        out = super().attention(q, k, v, *args, **kw)
        if self.layer in self.reads:
            self.seen[self.layer] = Attended(q, k, v, self.bias, self.scale)
        return out

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        super()._follow(plan, n, layer)
        self.place = places(plan, self.place)
        here = {b: a for b, a in self.seen.items() if layer <= max(b, self.tower.feature)}
        self.seen = {b: a for b, a in self.seen.items() if b not in here} | followed(here, plan)


class NormedPass(ImagePass):
    """The same where the projector takes the features behind the encoder's last norm."""

    def normed(self, plain: Callable[..., Tensor], x: Tensor) -> Tensor:
        """The norm of the encoder's output, and of what a method appended to the features."""
        y, n = plain(x), x.shape[1]
        appended = self.features[:, n:]
        self.features = torch.cat([y, plain(appended)], 1) if appended.shape[1] else y
        return y


class ProjectorPass(Pass):
    """The state between an image encoder and a language model.

    Attributes:
        expected: tokens of an image that the language model's code counts on.
        newlines: tokens for new lines stay where crops are put together.
        removed: how many are missing, of all images (and crops of images) together.
        fixed: class tokens in front, while they are there: 0 or 1.
        place: (I,M) place of each token among the image's, class token included.
        seen: by block of the image encoder, what its attention saw.
        features: (I,N,C) the tokens ahead of the projector; None where a method made new ones.
        hidden: class tokens that the projection does not get.
        image: the image encoder's pass, where the tokens are its own.
        prompts: (B,L) ids of the prompts, where they are known before the language model runs.
        worded: a method compares images with words.
        crops: how many crops each image is cut into; empty where it is one.
        frames: of a video, while its tokens are equally many in each; else fewer than 2.
    """

    tower: ProjectorTower
    frames: int = 1

    def __init__(self, tower: ProjectorTower, reductions: Sequence[Reduction]) -> None:
        """Nothing is removed yet."""
        super().__init__(tower, reductions)
        self.expected, self.removed, self.hidden = tower.whole, 0, 0
        self.image: Any = None
        self.crops: list[int] = []
        self.prompts: Tensor | None = None
        self.seen: dict[int, Attended] = {}
        methods = [one.reducer for one in reductions if isinstance(one.reducer, ProjectorReducer)]
        self.newlines = all(method.newlines for method in methods)
        worded = [method for method in methods if method.reads_words]
        self.worded = bool(worded)
        if worded and tower.guide is None:
            raise Unsupported(
                f"method '{worded[0].name}' compares patches with the question in CLIP's joint "
                "space, and this model has no text tower: set its text_guide to a "
                "bench.TextGuide of the CLIP that its image encoder came from"
            )

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
        # the class token goes no further, unless the model or a method wants it to
        self.hidden = self.fixed if self.tower.drops_class and not self.class_stays else 0
        return x[:, self.hidden :]

    def behind(self, x: Tensor, n_in: int) -> Tensor:
        """Projected tokens (I,M,C) -> as many rows as the language model counts on (I,N,C)."""
        if self.after:  # they see as many tokens as there were ahead of the projector
            x = F.pad(x, (0, 0, self.hidden, 0))
            for reduction in self.after:
                x = self._step(reduction, 0, x)
            x = x[:, self.hidden :]
        self._drop_hidden()
        self._report(n_in, x.shape[1])
        missing = self.expected - x.shape[1]
        self.removed = len(x) * missing
        return self._marked(x) if missing > 0 else x

    def _report(self, n_in: int, n_out: int) -> None:
        """Tell observers how many tokens methods were shown, and how many they left."""
        for observer in observe.OBSERVERS:
            observer.block(self.tower.name, 0, n_in, n_out)

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The features (I,M,C) that the model selected, or those with their class token."""
        self.fixed = self.tower.prefix
        image = cast("ImagePass", self.upstream["vision"]) if self.tower.has_vision else None
        x = self._begun(x if image is None else image.features)
        if image is not None:
            self.image, self.size, self.place = image, image.features_size, image.features_place
            self.reduced, n = image.reduced, x.shape[1] + image.cut
            seen = {b: a for b, a in image.seen.items() if a.q.shape[2] == n}
            self.seen = {block: a.first(x.shape[1]) for block, a in seen.items()}
            if image.initial - self.fixed < self.tower.patches:
                self.place = self._scaled(self.place, image.initial - self.fixed)
        self.grid = self.tower.grid(self.first) if not self.reduced else None
        return x

    def _begun(self, x: Tensor) -> Tensor:
        """The tokens (I,M,C) that methods start with, none removed yet; class tokens in front."""
        self.changed = self.merged = self.reduced = self.padded = self.class_stays = False
        self.slot = self.anchor = None
        self.features: Tensor | None = x
        self.first = x.shape[1] - self.fixed
        self.size = torch.ones(*x.shape[:2], 1, device=x.device)
        position = torch.arange(x.shape[1], device=x.device)
        self.place = position.expand(len(x), -1)
        self.protect = (position < self.fixed).expand(len(x), -1)
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
        if isinstance(reducer, VideoReducer) and self.frames < 2:
            raise Unsupported(
                f"method '{reducer.name}' compares the frames of a video: give it one"
            )
        r = reduction.count(layer, self.depth, present, self.first, self.grid)
        if not r:
            return x
        if isinstance(reducer, ProjectorReducer):
            self.class_stays = self.class_stays or reducer.keeps_class
        self.reader = reducer
        return self._reduce(reduction, layer, x, r)

    def _site(self, layer: int, x: Tensor) -> ProjectorSite:
        site = ProjectorSite(**vars(super()._site(layer, x)), joins=self.tower.joins)
        none = x[:, None, :, :0]
        site = replace(site, q=none, k=none, v=none, n_protected=self.fixed, prefix=self.fixed)
        if isinstance(self.reader, ProjectorReducer) and self.reader.reads_words:
            site = self._worded(site, self.reader.reads_words == "cut")
        return self._attended(site, self.reader)

    def _worded(self, site: ProjectorSite, cut: bool) -> ProjectorSite:
        """The site with its tokens and the questions in CLIP's joint space.

        Raises:
            Unsupported: it is not known which image belongs to which prompt, or what the tokens
                were ahead of the projector.
        """
        guide, ids = self.tower.guide, self.prompts
        ids = self.upstream["language"].input_ids if ids is None else ids
        if guide is None or ids is None:
            raise Unsupported(f"method '{self.reader.name}' needs a prompt of ids: give input_ids=")
        crops = self.crops or [1] * len(site.x)
        if self.features is None:
            raise Unsupported(f"method '{self.reader.name}' needs tokens that no method ahead made")
        if len(ids) not in (1, len(crops)):
            raise Unsupported(
                f"method '{self.reader.name}' needs one image a prompt, or one prompt at a time, "
                f"and here {len(ids)} prompts have {len(crops)} images: run with batch size 1"
            )
        text = guide.texts(ids, cut)
        text = torch.cat([text[i % len(ids)].expand(n, -1, -1) for i, n in enumerate(crops)])
        return replace(site, image_embeds=guide.images(self.features), text_embeds=text)

    def _attended(self, site: ProjectorSite, reader: Reducer) -> ProjectorSite:
        """The site with the attention of the blocks that a method reads.

        Raises:
            Unsupported: the tokens are no longer those of these blocks, and it reads them.
        """
        blocks = () if self.image is None else self.image.blocks_read(reader)
        missing = [block for block in blocks if block not in self.seen]
        reads = isinstance(reader, ProjectorReducer) and reader.reads is not None
        if reads and (missing or self.image is None):
            raise Unsupported(f"method '{reader.name}' reads attention, and {self._lost(missing)}")
        if missing or not blocks:
            return site
        first, *further = (replace(site, **vars(self.seen[block])) for block in blocks)
        return replace(first, further=tuple(further))

    def _lost(self, blocks: Sequence[int]) -> str:
        """Why the attention of these blocks cannot be read."""
        if self.image is None:
            return "this model's projector gets no tokens of the image encoder's blocks"
        names = " and ".join(reduction.reducer.name for reduction in self.image.reductions)
        return (
            f"the attention of vision block {blocks[0]} is not that of the tokens left: "
            f"give {names} layers= below {blocks[0]}"
        )

    def _follow(self, plan: Plan, n: int, layer: int) -> None:
        self.place = places(plan, self.place)
        self.seen = followed(self.seen, plan, self.tower.joins)
        made = plan.extra is not None or plan.src is not None or plan.padded
        known = None if made else self.features
        self.features = None if known is None else take(known, plan.keep)
        self._carry(plan)

    def _drop_hidden(self) -> None:
        """Forget the class token that went no further."""
        if cut := self.hidden:
            self.fixed, self.anchor = 0, None
            self.size, self.protect = self.size[:, cut:], self.protect[:, cut:]
            self.place = self.place[:, cut:]

    def _marked(self, x: Tensor) -> Tensor:
        """(I,M,C) -> (I,N,C) with rows of NaN for what was removed."""
        x = x.masked_fill(self.size == 0, torch.nan)
        if not self.tower.grid_order:
            missing = x.new_full((len(x), self.expected - x.shape[1], x.shape[2]), torch.nan)
            return torch.cat([x, missing], 1)
        at = self.place - (self.tower.prefix if self.tower.drops_class else 0)
        # a class token that came along takes the first place that became free, an appended one the
        # last
        ahead, behind = at < 0, at >= self.expected
        free = torch.ones(len(x), self.expected + 1, device=x.device)
        free = free.scatter(1, torch.where(ahead | behind, self.expected, at), 0)
        free = free[:, : self.expected]
        last = self.expected - 1 - free.flip(1).argmax(1, keepdim=True)
        at = torch.where(behind, last, torch.where(ahead, free.argmax(1, keepdim=True), at))
        out = x.new_full((len(x), self.expected, x.shape[2]), torch.nan)
        return out.scatter(1, at[..., None].expand_as(x), x)
