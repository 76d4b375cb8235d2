"""A reduced pass through a language model: image tokens leave its prompt, and its KV cache.

Only a prompt (prefill) is reduced. What a block keeps in its cache is what it saw, so that the
caches behind a removal are shorter; decoding goes on from there, with the mask and the positions
that belong to each. What an earlier tower removed is taken out of the prompt before the first
block, and so is what a method removes ahead of it: to the model that is a shorter prompt.

Shape suffixes: B batch, N tokens of the prompt, M tokens that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core import Reducer, Site, observe
from bench.core.errors import Unsupported
from bench.core.tensors import take
from bench.engine.forward import Part, Pass, additive

if TYPE_CHECKING:
    from bench.engine.families.vlm import LanguageTower


@dataclass(frozen=True)
class Left:
    """The tokens that are left of a prompt.

    Attributes:
        x: (B,M,C) tokens, `size` (B,M,1), `image` (B,M) the image's.
        place: (B,M) position of each in the prompt; in an empty slot any.
        filled: (B,M) False in padding, and in slots that are empty since others kept more.
    """

    x: Tensor
    size: Tensor
    image: Tensor
    place: Tensor
    filled: Tensor

    def rows(self, at: slice) -> Left:
        """The samples `at`."""
        return Left(**{f.name: getattr(self, f.name)[at] for f in fields(self)})

    def take(self, index_BM: Tensor) -> Left:
        """The tokens at these positions."""
        return Left(
            take(self.x, index_BM),
            take(self.size, index_BM),
            *(t.gather(1, index_BM) for t in (self.image, self.place, self.filled)),
        )


def _beside(samples: Sequence[Left]) -> Left:
    """Samples of unequal length in one batch, the shorter ones with empty slots in front."""
    longest = max(one.x.shape[1] for one in samples)

    def pad(name: str) -> Tensor:
        tensors = [getattr(one, name) for one in samples]
        before = [longest - t.shape[1] for t in tensors]
        tail = (0, 0) * (tensors[0].dim() - 2)
        return torch.cat([F.pad(t, (*tail, n, 0)) for t, n in zip(tensors, before, strict=True)])

    return Left(**{f.name: pad(f.name) for f in fields(Left)})


@dataclass(frozen=True)
class Stage:
    """From `layer` on, blocks see the tokens at `place` of what the first block saw.

    `moved` (B,M) is how far each moved up, where the method renumbers positions.
    """

    layer: int
    place: Tensor
    filled: Tensor
    moved: Tensor | None


class LanguagePass(Pass):
    """The state of a language model during one prompt and the decoding after it.

    Attributes:
        left: what the present block sees of a prompt, while it runs.
        cut: what the first block sees of the prompt, where that is not all.
    """

    tower: LanguageTower

    def __init__(self, tower: LanguageTower, parts: Sequence[Part]) -> None:
        """Nothing is known about a prompt yet."""
        super().__init__(tower, parts)
        self.visitor, self.appends = self.guest, 0  # nothing is appended to a prompt
        self.decoding = False
        self._clear()

    def _clear(self) -> None:
        self.left: Left | None = None
        self.cut: Left | None = None
        self.first: Tensor | None = None
        self.moved: Tensor | None = None
        self.stages: list[Stage] = []
        self.ragged = self.renumbered = self.changed = False
        self.start: Site | None = None
        self.qkv = None
        self.given: Tensor | None = None
        self.rotary: dict[str, Any] = {}

    # --- the language model as a whole ---------------------------------------------------------

    def forward(self, plain: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """The language model without its head: a prompt is cut first, a next token follows it."""
        cache = kw.get("cache", kw.get("past_key_values"))  # from transformers 5.24 on: cache
        ids, self.input_ids = self.input_ids, None
        self.past = 0 if cache is None else int(cache.get_seq_length())
        self.decoding = self.past > 0
        if self.decoding:
            return plain(*args, **self._next(kw))
        self._clear()
        self.number_batch()
        x = kw.get("inputs_embeds")
        if ids is None or x is None or ids.shape != x.shape[:2]:
            return plain(*args, **kw)
        image = self.tower.image_of(ids)
        if not bool(image.any()):
            return plain(*args, **kw)
        if getattr(cache, "is_compileable", False):
            raise Unsupported("a static cache has one length for all blocks: use a dynamic cache")
        whole = self._prompt(x, kw.get("attention_mask"), image)
        left = self._ahead_of_all(self._alive(whole))
        n, m = whole.x.shape[1], left.x.shape[1]
        if left is not whole:  # may be as long: where one sample lost nothing
            self.cut = left
            kw = self._shorter(kw, whole, left)
        place = torch.arange(m, device=left.x.device).expand(len(left.x), -1)
        self.left, self.first = replace(left, place=place), left.filled
        out = plain(*args, **kw)
        if self.cut is not None or out.last_hidden_state.shape[1] < n:
            out.last_hidden_state = self._restored(out.last_hidden_state, n)
        self.left = self.start = self.qkv = self.given = None
        return out

    def _prompt(self, x: Tensor, mask: Tensor | None, image: Tensor) -> Left:
        B, N, _ = x.shape
        self.counts = self.initials = image.sum(1).tolist()
        filled = torch.ones(B, N, device=x.device) if mask is None else mask.to(x.device).float()
        place = torch.arange(N, device=x.device).expand(B, N)
        return Left(x, filled[..., None], image.to(x.device), place, filled > 0)

    def _alive(self, left: Left) -> Left:
        """Without the tokens that earlier towers removed, which they mark by NaN."""
        before: Any = self.upstream.get("projector")
        if before is None or not before.removed:
            return left
        if left.x.is_meta:  # the same number anywhere costs the same
            gone = before.removed // len(self.counts)
            self.counts = self.initials = [n - gone for n in self.counts]
            return left.take(left.place[:, gone:])
        alive = ~(left.image & left.x[..., 0].isnan())
        most = int(alive.sum(1).max())
        order = alive.to(torch.int8).argsort(dim=1, stable=True)[:, alive.shape[1] - most :]
        left, real = left.take(order), alive.gather(1, order)
        self.ragged = not bool(real.all())
        image = left.image & real
        self.counts = self.initials = image.sum(1).tolist()
        x = left.x.masked_fill(~real[..., None], 0.0)
        return Left(x, left.size * real[..., None], image, left.place, left.filled & real)

    def _ahead_of_all(self, left: Left) -> Left:
        """What methods that act on a block's input do to the first one's."""
        self.start = self._site(0, left)
        for part in self.before:
            left = self._shorten(part, 0, left)
        self.initials = self.counts
        return left

    def _shorter(self, kw: dict[str, Any], whole: Left, left: Left) -> dict[str, Any]:
        """The arguments of the language model for the prompt's tokens that are left."""
        mask, position = kw.get("attention_mask"), kw.get("position_ids")
        if mask is not None or self.ragged:
            mask = left.filled.long()
        if position is not None:
            up = _moved_up(whole.filled, left)
            index = left.place.expand(*position.shape[:-2], -1, -1)
            position = position.expand(*position.shape[:-2], len(left.x), -1).gather(-1, index)
            if position.dim() == 2:
                self.moved, position = up[:, -1:], position - up
            elif len(position) == 4:  # M-RoPE: only the count of tokens, for the mask, moves up
                self.moved = up[:, -1:]
                position = torch.cat([position[:1] - up, position[1:]])
        return {**kw, "inputs_embeds": left.x, "attention_mask": mask, "position_ids": position}

    def _next(self, kw: dict[str, Any]) -> dict[str, Any]:
        """The arguments for the next token, as after the shorter prompt."""
        if self.cut is None and not self.stages:
            return kw
        tokens = kw.get("input_ids") if kw.get("inputs_embeds") is None else kw["inputs_embeds"]
        if tokens is not None and tokens.shape[1] != 1:
            raise Unsupported("several tokens after a reduced prompt: give all as one prompt")
        if self.cut is None:
            return kw
        mask, position = kw.get("attention_mask"), kw.get("position_ids")
        if mask is not None or self.ragged:
            mask = self._with_next(self.cut.filled).long()
        if position is not None and self.moved is not None:
            if position.dim() == 2:
                position = position - self.moved
            else:
                position = torch.cat([position[:1] - self.moved, position[1:]])
        return {**kw, "attention_mask": mask, "position_ids": position}

    def _with_next(self, filled: Tensor) -> Tensor:
        """(B,M) of a prompt -> (B,M+T) with the tokens that were decoded since, and the next."""
        assert self.first is not None
        return F.pad(filled, (0, self.past + 1 - self.first.shape[1]), value=True)

    def _restored(self, x: Tensor, n: int) -> Tensor:
        """(B,M,C) -> (B,N,C): each token at its place in the prompt, zeros for those that left."""
        assert self.left is not None
        place = self.left.place
        if self.cut is not None:
            place = self.cut.place.gather(1, place)
        place = place.masked_fill(self.left.size[..., 0] == 0, n)
        out = x.new_zeros(len(x), n + 1, x.shape[2])
        return out.scatter(1, place[..., None].expand_as(x), x)[:, :n]

    # --- its blocks ----------------------------------------------------------------------------

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """One block, on a prompt or on a next token."""
        self.module, self.arguments = block, kw
        self.guest = self.visitor if self.left is not None else None
        if self.guest and self.left is not None:
            self.anchor = self.left.filled.to(torch.int8).argmax(1)
        return super().block(layer, block, x, *args, **kw)

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A prompt has begun before its first block."""
        return x

    def _step(self, part: Part, layer: int, x: Tensor) -> Tensor:
        if self.left is None or (layer == 0 and part.reducer.before):
            return x
        before = replace(self.left, x=x)
        self.left = self._shorten(part, layer, before)
        if self.left is before:
            return x
        assert self.first is not None
        moved = _moved_up(self.first, self.left) if self.renumbered else None
        since = layer if part.reducer.before else layer + 1
        self.stages.append(Stage(since, self.left.place, self.left.filled, moved))
        self.rotary = {}
        return self.left.x

    def _shorten(self, part: Part, layer: int, left: Left) -> Left:
        """Remove what the schedule says, sample by sample where they have unequal images."""
        reducer, r = part.reducer, []
        for now, first in zip(self.counts, self.initials, strict=True):
            wanted = part.schedule(layer, self.depth, now, first)
            r.append(reducer.feasible(wanted, now, None) if wanted > 0 else 0)
        if not any(r):
            return left
        for observer in observe.OBSERVERS:
            observer.enter("reduction")
        site = self._site(layer, left)
        if len(set(self.counts)) == 1:
            left = _reduced(reducer, site, left, r[0])
        else:
            each = [slice(b, b + 1) for b in range(len(r))]
            samples = [
                _reduced(reducer, _sample(site, at), left.rows(at), some) if some else left.rows(at)
                for at, some in zip(each, r, strict=True)
            ]
            left, self.ragged = _beside(samples), True
        n = left.x.shape[1]
        if left.x.is_meta:
            self.counts = [count - (site.x.shape[1] - n) for count in self.counts]
        else:
            self.counts = left.image.sum(1).tolist()
        self.renumbered = self.renumbered or (reducer.renumbers and self.tower.renumbers)
        for observer in observe.OBSERVERS:
            observer.exit("reduction")
        return left

    def _site(self, layer: int, left: Left) -> Site:  # type: ignore[override]
        B, M, _ = left.x.shape
        q, k, v = self.qkv or (left.x[:, None, :, :0],) * 3
        bias = additive(self.given, left.x.dtype)
        return Site(
            left.x,
            q,
            k,
            v,
            left.size,
            ~left.image,
            layer,
            self.depth,
            n_protected=M - self.counts[0],
            tower=self.tower.name,
            scale=self.scale,
            bias=bias,
            anchor=torch.full((B,), M - 1, device=left.x.device),
            prefix=0,
            whole=not self.stages,
            causal=bias is None,
            start=self.start,
            ahead=lambda: self._ahead(left.x),
            norm=self.tower.final_norm,
            draw=self.draw,
        )

    def _ahead(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.tower.ahead(self.module, x, self._arguments(self.arguments, x))

    def _stage(self) -> Stage | None:
        return next((s for s in reversed(self.stages) if s.layer <= self.layer), None)

    def _mask(self, given: Tensor | None, x: Tensor) -> Tensor | None:
        stage = self._stage()
        if stage is None:
            return given
        filled = stage.filled if given is not None or self.ragged else None
        if not self.decoding:
            return self.tower.causal_mask(x, filled)
        if filled is None:
            return None
        return self.tower.mask(self._with_next(filled)[:, None, None], x)

    def _arguments(self, kw: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """Rotary angles of the tokens that are left: their own, or of the positions they moved to.

        A block before a removal and the one behind it may disagree about where a next token is.
        """
        stage, given = self._stage(), kw.get("position_embeddings")
        if stage is None or given is None or (self.decoding and stage.moved is None):
            return kw
        if self.decoding:
            return {**kw, **self.tower.rotary(x, kw["position_ids"] - stage.moved[:, -1:])}  # type: ignore[index]
        if not self.rotary:
            if stage.moved is None:
                self.rotary = {
                    "position_embeddings": tuple(
                        take(angle.expand(len(x), -1, -1), stage.place) for angle in given
                    )
                }
            else:
                position = kw["position_ids"].expand(len(x), -1).gather(1, stage.place)
                self.rotary = self.tower.rotary(x, position - stage.moved)
        return {**kw, **self.rotary}

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        inner: Callable[..., Tensor],
        fused: bool,
    ) -> Tensor:
        """The model's own attention; a prompt's q, k, v are noted for the methods."""
        if self.left is not None:
            self.qkv, self.scale, self.given = (q, k, v), scale, mask
        return inner(q, k, v, mask, scale)


def _moved_up(first: Tensor, left: Left) -> Tensor:
    """(B,M) how many tokens ahead of each are gone, of those that were `first` (B,N) there."""
    return _counted(first).gather(1, left.place) - _counted(left.filled)


def _counted(filled: Tensor) -> Tensor:
    return (filled.long().cumsum(1) - 1).clamp_min(0)


def _reduced(reducer: Reducer, site: Site, left: Left, r: int) -> Left:
    """Apply a method's plan; made tokens stand behind the last token of the image."""
    plan = reducer.plan(site, r)
    plan = plan.reorder(plan.keep)
    x, size = plan.apply(left.x, left.size)
    image, place, filled = (t.gather(1, plan.keep) for t in (left.image, left.place, left.filled))
    if plan.extra is None:
        return Left(x, size, image, place, filled)
    made = plan.extra.shape[1]
    last = left.place.masked_fill(~left.image, -1).amax(1, keepdim=True)
    place = torch.cat([place, last.expand(-1, made)], 1)
    image, filled = (F.pad(t, (0, made), value=True) for t in (image, filled))
    return Left(x, size, image, place, filled).take(place.argsort(dim=1, stable=True))


def _sample(site: Site, at: slice) -> Site:
    """The site of some samples of a batch."""
    cut: dict[str, Any] = {
        f.name: value[at]
        for f in fields(site)
        if isinstance(value := getattr(site, f.name), Tensor) and len(value) == len(site.x)
    }
    ahead, start = site.ahead, site.start
    return replace(
        site,
        **cut,
        n_protected=int(site.protect[at].sum()),
        start=None if start is None else _sample(start, at),
        ahead=None if ahead is None else lambda: (ahead()[0][at], ahead()[1][at]),
    )
