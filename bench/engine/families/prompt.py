"""A prompt whose image tokens become fewer: its tokens, and where they were.

Shape suffixes: B batch, N tokens of the prompt, M tokens that remain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core import Reducer
from bench.core.site import LanguageSite
from bench.core.tensors import take


@dataclass(frozen=True)
class Prompt:
    """The tokens that remain of a prompt.

    Attributes:
        x: (B,M,C) tokens, `size` (B,M,1), `image` (B,M) the image's.
        place: (B,M) position of each in the prompt; in an empty slot any.
        filled: (B,M) False in padding, and in slots that are empty since other samples kept more.
        deep: (B,M,K*C) what DeepStack adds behind each of the next K blocks, side by side; None
            where nothing is added.
    """

    x: Tensor
    size: Tensor
    image: Tensor
    place: Tensor
    filled: Tensor
    deep: Tensor | None = None

    @classmethod
    def whole(
        cls, x: Tensor, mask: Tensor | None, image: Tensor, deep: Tensor | None = None
    ) -> Prompt:
        """A prompt (B,N,C) as a model gets it, with its padding (B,N) and what is the image's."""
        B, N, _ = x.shape
        filled = torch.ones(B, N, device=x.device) if mask is None else mask.to(x.device).float()
        place = torch.arange(N, device=x.device).expand(B, N)
        return cls(x, filled[..., None], image.to(x.device), place, filled > 0, deep)

    def rows(self, b: int) -> Prompt:
        """Sample `b` alone."""
        at = slice(b, b + 1)
        return Prompt(**{name: getattr(self, name)[at] for name in self.held})

    @property
    def held(self) -> list[str]:
        """Names of its tensors."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def deepened(self, x: Tensor) -> tuple[Tensor, Prompt]:
        """A block's output (B,M,C) with DeepStack's features, and the prompt without those."""
        if self.deep is None:
            return x, self
        here, later = self.deep.tensor_split([x.shape[2]], 2)
        return x + here, replace(self, deep=later if later.shape[2] else None)

    def take(self, index_BM: Tensor) -> Prompt:
        """The tokens at these positions."""
        image, place, filled = (
            t.gather(1, index_BM) for t in (self.image, self.place, self.filled)
        )
        deep = None if self.deep is None else take(self.deep, index_BM)
        return Prompt(take(self.x, index_BM), take(self.size, index_BM), image, place, filled, deep)

    def lost(self) -> Tensor:
        """(B,M) the tokens that earlier towers removed, which they mark by NaN."""
        return self.image & self.x[..., 0].isnan()

    def packed(self, filled_BM: Tensor, slots: int) -> Prompt:
        """The tokens that are `filled`, in so many slots, of which the first are the empty ones."""
        order = filled_BM.to(torch.int8).argsort(dim=1, stable=True)[:, -slots:]
        rest, filled = self.take(order), filled_BM.gather(1, order)
        x = rest.x.masked_fill(~filled[..., None], 0.0)
        size, image = rest.size * filled[..., None], rest.image & filled
        deep = None if rest.deep is None else rest.deep.masked_fill(~filled[..., None], 0.0)
        return Prompt(x, size, image, rest.place, filled, deep)

    def reduced(self, reducer: Reducer, site: LanguageSite, r: int) -> Prompt:
        """Without `r` tokens, by a method's plan; those that it makes stand behind the image's."""
        if not r:
            return self
        plan = reducer.plan(site, r)
        plan = plan.reorder(plan.keep)
        x, size = plan.apply(self.x, self.size)
        deep = None if self.deep is None else plan.apply(self.deep, self.size)[0]
        image, place, filled = (
            t.gather(1, plan.keep) for t in (self.image, self.place, self.filled)
        )
        if plan.extra is None:
            return Prompt(x, size, image, place, filled, deep)
        made = plan.extra.shape[1]
        last = self.place.masked_fill(~self.image, -1).amax(1, keepdim=True)
        place = torch.cat([place, last.expand(-1, made)], 1)
        image, filled = (F.pad(t, (0, made), value=True) for t in (image, filled))
        return Prompt(x, size, image, place, filled, deep).take(place.argsort(dim=1, stable=True))

    def gone_ahead(self, filled_BN: Tensor) -> Tensor:
        """(B,M) how many tokens ahead of each are gone, of those that were `filled` at first."""
        return _counted(filled_BN).gather(1, self.place) - _counted(self.filled)

    def arguments(
        self, kw: dict[str, Any], filled_BN: Tensor, ragged: bool
    ) -> tuple[dict[str, Any], Tensor | None]:
        """A language model's arguments for these tokens of a prompt that was `filled` at first.

        Returns:
            The arguments, and (B,1) by how much the positions behind the prompt move up; None where
            positions say where in an image a token is.
        """
        moved, mask, position = None, kw.get("attention_mask"), kw.get("position_ids")
        if mask is not None or ragged:
            mask = self.filled.long()
        if position is not None:
            up = self.gone_ahead(filled_BN)
            index = self.place.expand(*position.shape[:-2], -1, -1)
            position = position.expand(*position.shape[:-2], len(up), -1).gather(-1, index)
            if position.dim() == 2 or len(position) == 4:
                moved, position = up[:, -1:], moved_up(position, up)
            kw = {**kw, "position_ids": position}
        return {**kw, "inputs_embeds": self.x, "attention_mask": mask}, moved

    def restored(self, x: Tensor, n: int) -> Tensor:
        """(B,M,C) -> (B,N,C): each token at its place in the prompt, zeros for removed ones."""
        place = self.place.masked_fill(self.size[..., 0] == 0, n)
        out = x.new_zeros(len(x), n + 1, x.shape[2])
        return out.scatter(1, place[..., None].expand_as(x), x)[:, :n]


@dataclass(frozen=True)
class Removal:
    """From `layer` on, blocks see the tokens at `place` (B,M) of what the first block saw.

    `moved` (B,M) is how far each moved up, where the method renumbers positions; `weight` (B,M) is
    what is added to the logits of each, where attention goes by sizes.
    """

    layer: int
    place: Tensor
    filled: Tensor
    moved: Tensor | None
    weight: Tensor | None


def deepstack(kw: dict[str, Any], x: Tensor) -> Tensor | None:
    """(B,N,K*C) what DeepStack adds to the image's tokens of a prompt (B,N,C); None if nothing.

    It is taken out of the language model's arguments `kw`.
    """
    features, image = (kw.pop(n, None) for n in ("deepstack_visual_embeds", "visual_pos_masks"))
    if not features:
        return None
    zeros = x.new_zeros(*x.shape[:2], len(features) * x.shape[2])
    return zeros.masked_scatter(image[..., None], torch.cat(tuple(features), 1).to(x))


def frames_of(
    videos: Sequence[tuple[int, int]], shown: Sequence[int], counts: Sequence[int]
) -> list[int]:
    """Of each prompt the frames of its video; 1 where it shows none, or something else, too.

    Args:
        videos: frames and tokens of each, in the order of the prompts.
        shown: each prompt's tokens of videos.
        counts: its tokens of images and videos.
    """
    if sum(tokens for _, tokens in videos) != sum(shown):  # they are of another prompt
        return [1] * len(shown)
    left, frames = iter(videos), []
    for n, image in zip(shown, counts, strict=True):
        own = [next(left)] if n else []
        while sum(tokens for _, tokens in own) < n:
            own.append(next(left))
        frames.append(own[0][0] if len(own) == 1 and n == image else 1)
    return frames


def moved_up(position: Tensor, up: Tensor) -> Tensor:
    """Positions (B,M), or M-RoPE's (4,B,M), less `up`.

    Only row 0 of M-RoPE counts tokens; the others say where in an image a token is, and stay.
    """
    if position.dim() == 2:
        return position - up
    return torch.cat([position[:1] - up, position[1:]])


def _counted(filled: Tensor) -> Tensor:
    return (filled.long().cumsum(1) - 1).clamp_min(0)


def beside(samples: Sequence[Prompt]) -> Prompt:
    """Samples of unequal length in one batch, the shorter ones with empty slots in front."""
    longest = max(sample.x.shape[1] for sample in samples)

    def pad(name: str) -> Tensor:
        tensors = [getattr(sample, name) for sample in samples]
        before = [longest - t.shape[1] for t in tensors]
        tail = (0, 0) * (tensors[0].dim() - 2)
        return torch.cat([F.pad(t, (*tail, n, 0)) for t, n in zip(tensors, before, strict=True)])

    return Prompt(**{name: pad(name) for name in samples[0].held})


def sample_site(
    site: LanguageSite, b: int, image: int, started: int, frames: int, first_frames: int
) -> LanguageSite:
    """The site of sample `b` of a batch.

    It has so many `image` tokens of so many `frames`, and had as many as `started` of
    `first_frames` at the model's input.
    """
    at = slice(b, b + 1)
    cut: dict[str, Any] = {
        f.name: value[at]
        for f in fields(site)
        if isinstance(value := getattr(site, f.name), Tensor) and len(value) == len(site.x)
    }
    start, turned, batch = site.start, site.turned, len(site.x)
    return replace(
        site,
        **cut,
        n_protected=site.protect.shape[1] - image,
        start=start and sample_site(start, b, started, started, first_frames, first_frames),
        frames=frames,
        ahead=partial(_rows_of, site.ahead, at),
        unrotated=partial(_rows_of, site.unrotated, at),
        turned=turned and (lambda x: turned(x.expand(batch, -1, -1, -1))[at]),
    )


def _rows_of(both: Callable[[], tuple[Tensor, Tensor]], at: slice) -> tuple[Tensor, Tensor]:
    q, k = both()
    return q[at], k[at]
