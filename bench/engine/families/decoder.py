"""A reduced pass through a language model: image tokens leave its prompt, and its KV cache.

Only a prompt (prefill) is reduced. What a block keeps in its cache is what it saw, so that the
caches behind a removal are shorter; decoding goes on from there, with the mask and the positions
that belong to each. What an earlier tower removed is taken out of the prompt before the first
block, and so is what a method removes ahead of it: to the model that is a shorter prompt.

Shape suffixes: B batch, N tokens of the prompt, M tokens that remain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core import observe
from bench.core.errors import Unsupported
from bench.core.kinds import DecodeReducer, LanguageReducer, is_adaptive
from bench.core.site import LanguageSite
from bench.core.tensors import take
from bench.engine.families.hidden_keys import HiddenKeys
from bench.engine.families.prompt import (
    Prompt,
    Removal,
    beside,
    deepstack,
    frames_of,
    moved_up,
    sample_site,
)
from bench.engine.forward import Pass
from bench.engine.masks import weighted
from bench.engine.reduction import Reduction

if TYPE_CHECKING:
    from bench.engine.families.language import LanguageTower


class LanguagePass(Pass):
    """The state of a language model during one prompt and the decoding after it.

    Attributes:
        prompt: what the present block sees of a prompt; None while nothing or a next token runs.
        cut: what the first block sees of the prompt, where that is not all.
        entered: (B,N) which tokens of what the first block sees are no padding.
        counts: the image's tokens of each sample; `initials` at block 0, `started` at the input.
        words: how many other tokens each sample has, padding left out.
        videos: frames and tokens of each video that was encoded latest.
        frames: frames of each sample's tokens, where these are those of one video; else 1.
        moved: (B,1) how far positions behind the prompt moved up ahead of the first block.
        removals: what blocks see from which layer on.
        ragged: samples are unequally long, with empty slots in front.
        start: the site at the model's input.
        keys: what methods hide of the cache from a new token.
        mask: the mask that the latest attention got.
        rotary: what a block is told of the present tokens' positions, once it was worked out.
    """

    tower: LanguageTower

    def __init__(self, tower: LanguageTower, reductions: Sequence[Reduction]) -> None:
        """Nothing is known about a prompt yet."""
        super().__init__(tower, reductions)
        self.visitor, self.appends = self.appender, 0  # nothing is appended to a prompt
        self.decoding = False
        self.videos: list[tuple[int, int]] = []
        self._clear()

    def _clear(self) -> None:
        self.prompt: Prompt | None = None
        self.cut: Prompt | None = None
        self.entered: Tensor | None = None
        self.moved: Tensor | None = None
        self.removals: list[Removal] = []
        self.ragged = self.renumbered = self.changed = False
        self.start: LanguageSite | None = None
        self.qkv = None
        self.keys = HiddenKeys()
        self.mask: Tensor | None = None
        self.rotary: dict[str, Any] = {}
        self.module: Any = None
        self.arguments: dict[str, Any] = {}

    # --- the language model as a whole ---------------------------------------------------------

    def forward(self, plain: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """The language model without its head: a prompt is cut first, a next token follows it."""
        cache = kw.get("cache", kw.get("past_key_values"))  # from transformers 5.24 on: cache
        ids, self.input_ids = self.input_ids, None
        self.past = 0 if cache is None else int(cache.get_seq_length())
        self.decoding = self.past > 0
        if self.decoding:
            self.keys.shown = None
            return plain(*args, **self._next(kw))
        self._clear()
        self.number_batch()
        x = kw.get("inputs_embeds")
        if ids is None or x is None or ids.shape != x.shape[:2]:
            return plain(*args, **kw)
        image, mask = self.tower.image_of(ids), kw.get("attention_mask")
        filled = torch.ones_like(image)
        if mask is not None and not mask.is_meta:
            filled = mask.to(image.device) > 0
        # waits for a GPU, once a prompt
        counts, filled = torch.stack([image.sum(1), filled.sum(1)]).tolist()
        self.counts = self.initials = counts
        self.words = [n - m for n, m in zip(filled, counts, strict=True)]
        self.frames = self._frames(ids)
        if not any(self.counts):
            return plain(*args, **kw)
        if getattr(cache, "is_compileable", False):
            raise Unsupported("a static cache has one length for all blocks: use a dynamic cache")
        return self._cut_prompt(plain, args, kw, x, image)

    def _frames(self, ids: Tensor) -> list[int]:
        """The frames that each prompt (B,N) shows; of videos a GPU is asked, once a prompt."""
        if not self.videos:
            return [1] * len(ids)
        # ids without values are of a prompt that shows a video alone
        shown = self.counts if ids.is_meta else self.tower.video_of(ids).sum(1).tolist()
        return frames_of(self.videos, shown, self.counts)

    def _cut_prompt(
        self, plain: Callable[..., Any], args: Any, kw: dict[str, Any], x: Tensor, image: Tensor
    ) -> Any:
        """Run a prompt (B,N,C) without what is removed ahead of the first block."""
        deep = deepstack(kw, x)
        asked = Prompt.whole(x, kw.get("attention_mask"), image, deep)
        alive = self._alive(asked)
        if alive is not asked:
            self.frames = [1] * len(x)
        entering = self._before_first_block(alive)
        if entering is not asked:  # may be as long: where one sample lost nothing
            self.cut = replace(entering, deep=None)
            kw, self.moved = entering.arguments(kw, asked.filled, self.ragged)
        place = torch.arange(entering.x.shape[1], device=x.device).expand(len(x), -1)
        self.prompt, self.entered = replace(entering, place=place), entering.filled
        out = self._behind(plain(*args, **kw), x.shape[1])
        self.prompt = self.start = self.qkv = self.mask = None
        return out

    def _behind(self, out: Any, n: int) -> Any:
        """The output with its tokens at their places among the prompt's `n`."""
        x, prompt = out.last_hidden_state, self.prompt
        if prompt is not None and (self.cut is not None or x.shape[1] < n):
            place = prompt.place if self.cut is None else self.cut.place.gather(1, prompt.place)
            out.last_hidden_state = replace(prompt, place=place).restored(x, n)
        return out

    def _alive(self, prompt: Prompt) -> Prompt:
        """The prompt without the tokens that earlier towers removed."""
        before: Any = self.upstream.get("projector")
        if before is None or not before.removed:
            return prompt
        if prompt.x.is_meta:  # the same number anywhere costs the same
            gone = before.removed // len(self.counts)
            self.counts = self.initials = [n - gone for n in self.counts]
            return prompt.take(prompt.place[:, gone:])
        lost = prompt.lost()
        gone = lost.sum(1).tolist()  # waits for a GPU, once a prompt
        self.ragged = len(set(gone)) > 1
        self.counts = self.initials = [n - m for n, m in zip(self.counts, gone, strict=True)]
        return prompt.packed(prompt.filled & ~lost, self._longest())

    def _longest(self) -> int:
        """Tokens of the sample that has most of them, padding left out."""
        return max(map(sum, zip(self.words, self.counts, strict=True)))

    def _before_first_block(self, prompt: Prompt) -> Prompt:
        """Let methods that act on a block's input act on the prompt itself."""
        self.start, self.started = self._language_site(0, prompt), self.counts
        self.first_frames = self.frames
        for reduction in self.before:
            prompt = self._shorten(reduction, 0, prompt)
        self.initials = self.counts
        return prompt

    def _next(self, kw: dict[str, Any]) -> dict[str, Any]:
        """The arguments for the next token, as after the shorter prompt."""
        if self.cut is None and not self.removals and not self.keys.acting:
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
            position = moved_up(position, self.moved)
        return {**kw, "attention_mask": mask, "position_ids": position}

    def _with_next(self, of_prompt: Tensor) -> Tensor:
        """(B,M) -> (B,M+T) with the tokens decoded since and the next: filled, of weight 0."""
        assert self.entered is not None
        new = self.past + 1 - self.entered.shape[1]
        return F.pad(of_prompt, (0, new), value=of_prompt.dtype == torch.bool)

    # --- its blocks ----------------------------------------------------------------------------

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """One block, on a prompt or on a next token."""
        self.module, self.arguments = block, kw
        self.appender = self.visitor if self.prompt is not None else None
        if self.appender and self.prompt is not None:
            self.anchor = self.prompt.filled.to(torch.int8).argmax(1)
        x = super().block(layer, block, x, *args, **kw)
        if self.prompt is not None:
            x, self.prompt = self.prompt.deepened(x)
        return x

    def begin(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A prompt has begun before its first block."""
        return x

    def _step(self, reduction: Reduction, layer: int, x: Tensor) -> Tensor:
        if isinstance(reduction.reducer, DecodeReducer):
            self.keys.step(self, reduction, layer, x)
            return x
        if self.prompt is None or (layer == 0 and reduction.reducer.before):
            return x
        before = replace(self.prompt, x=x)
        self.prompt = self._shorten(reduction, layer, before)
        if self.prompt is before:
            return x
        assert self.entered is not None
        moved = self.prompt.gone_ahead(self.entered) if self.renumbered else None
        since = layer if reduction.reducer.before else layer + 1
        weight = self.prompt.size[..., 0].clamp_min(1).log() if self.proportional else None
        self.removals.append(Removal(since, self.prompt.place, self.prompt.filled, moved, weight))
        self.rotary = {}
        return self.prompt.x

    def _shorten(self, reduction: Reduction, layer: int, prompt: Prompt) -> Prompt:
        """Remove what the schedule says, sample by sample where they have unequal images."""
        reducer = reduction.reducer
        r = [
            reduction.count(layer, self.depth, now, first, None)
            for now, first in zip(self.counts, self.initials, strict=True)
        ]
        if not any(r) or isinstance(reducer, DecodeReducer):
            return prompt
        for observer in observe.OBSERVERS:
            observer.enter("reduction")
        site = self._language_site(layer, prompt)
        frames = list(zip(self.frames, self.first_frames, strict=True))
        meta, alike = prompt.x.is_meta, len(set(zip(self.counts, r, frames, strict=True))) == 1
        if alike and (len(r) == 1 or meta or not is_adaptive(reducer)):
            shorter = prompt.reduced(reducer, site, r[0])
            samples = [shorter] * len(r)
        else:
            samples = [
                prompt.rows(b).reduced(reducer, sample_site(site, b, now, first, *frames[b]), some)
                for b, (some, now, first) in enumerate(
                    zip(r, self.counts, self.started, strict=True)
                )
            ]
            shorter, self.ragged = beside(samples), True
        lengths = zip(self.counts, samples, strict=True)  # to ask a mask would wait for a GPU
        self.counts = [n - prompt.x.shape[1] + sample.x.shape[1] for n, sample in lengths]
        if self.ragged and shorter.x.shape[1] > self._longest():
            shorter = shorter.packed(shorter.filled, self._longest())
        self.frames = [1] * len(r)
        renumbers = isinstance(reducer, LanguageReducer) and reducer.renumbers
        self.renumbered = self.renumbered or (renumbers and self.tower.renumbers)
        for observer in observe.OBSERVERS:
            observer.exit("reduction")
        return shorter

    def _language_site(self, layer: int, prompt: Prompt) -> LanguageSite:
        return self.tower.site(self, layer, prompt)

    def filled_share(self) -> float | None:
        """Share of the slots of the latest prompt, over all blocks, that hold a token.

        The others are padding, or empty since another sample kept more. None before any prompt.
        """
        if self.entered is None:
            return None
        removals = [self._latest(layer) for layer in range(self.depth)]
        masks = [self.entered if removal is None else removal.filled for removal in removals]
        return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    def _latest(self, layer: int) -> Removal | None:
        """The removal after which a block runs."""
        return next((r for r in reversed(self.removals) if r.layer <= layer), None)

    def _mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        removal = self._latest(self.layer)
        if removal is None:
            return mask
        filled, weight = removal.filled, removal.weight
        if mask is None and not self.ragged and weight is None:
            return None if self.decoding else self.tower.causal_mask(x, None)
        if not self.decoding:
            mask = self.tower.causal_mask(x, filled)
        else:
            mask = self.tower.mask(self._with_next(filled)[:, None, None], x)
            weight = None if weight is None else self._with_next(weight)
        return weighted(mask, weight, x.dtype)

    def _arguments(self, kw: dict[str, Any], x: Tensor) -> dict[str, Any]:
        """Rotary angles of the tokens that remain: their own, or of the positions they moved to.

        A block before a removal and the one behind it may disagree about where a next token is.
        """
        removal, angles = self._latest(self.layer), kw.get("position_embeddings")
        if removal is None or angles is None:
            return kw
        place, moved = removal.place, removal.moved
        if self.decoding:
            if moved is None:
                return kw
            return {**kw, **self.tower.rotary(x, kw["position_ids"] - moved[:, -1:], self.module)}
        if not self.rotary and moved is None:
            here = (take(angle.expand(len(x), -1, -1), place) for angle in angles)
            self.rotary = {"position_embeddings": tuple(here)}
        elif not self.rotary:
            position = kw["position_ids"].expand(len(x), -1).gather(1, place)
            self.rotary = self.tower.rotary(x, position - moved, self.module)
        return {**kw, **self.rotary}

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, inner: Any, fused: bool
    ) -> Tensor:
        """The model's own attention; q, k, v are noted for the methods that look at them."""
        if self.prompt is not None or self.keys.acting:
            self.qkv, self.scale, self.mask = (q, k, v), scale, mask
        if self.keys.shown is not None:
            k, v, mask = self.keys.visible(k, v, mask, self.tower)
        return inner(q, k, v, mask, scale)  # type: ignore[no-any-return]
