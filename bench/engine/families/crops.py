"""Tokens on their way from the projector to the language model where an image has crops.

LLaVA-NeXT and LLaVA-OneVision put the crops of an image together to rows with a new line behind
each. What is too many is resampled: the rows of a large image by LLaVA-OneVision, and each frame of
a video by it and, ahead of the projector, by LLaVA-NeXT-Video. Removed tokens are rows of NaN by
then. A resampled token is the mean of those that remain of the tokens it is made of, by the weights
that the model gives them. It is removed where the nearest of these is, so that the share that
remains is the same.

Methods at the projector act on a video behind that, on all of its frames as one sequence.

Shape suffixes: I images or frames, N tokens of one, D channels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.errors import Unsupported
from bench.core.site import ProjectorSite
from bench.engine.families.projector import ProjectorPass
from bench.engine.tower import original

if TYPE_CHECKING:
    from bench.engine.families.image_towers import CropsTower


class CropsPass(ProjectorPass):
    """The state between an image encoder and a language model that sees crops, or videos.

    Attributes:
        missing: tokens that the latest images, or crops, lack each.
        frames: of each video, while videos are encoded; 0 while images are.
        of_images: tokens that the latest images lack together.
        later: methods that wait until the frames of a video are pooled.
    """

    tower: CropsTower
    missing = frames = of_images = 0

    def behind(self, x: Tensor, n_in: int) -> Tensor:
        """Projected tokens (I,M,C) -> as many rows as the model's code counts on (I,N,C)."""
        self.expected = self.tower.whole
        x = super().behind(x, n_in)
        self.missing = self.removed // len(x)
        return x

    def _report(self, n_in: int, n_out: int) -> None:
        if not self.frames:
            super()._report(n_in, n_out)

    def _site(self, layer: int, x: Tensor) -> ProjectorSite:
        return replace(super()._site(layer, x), frames=self.frames or 1)

    def _lost(self, blocks: Sequence[int]) -> str:
        """Why attention cannot be read."""
        return "the frames of a video are pooled" if self.frames else super()._lost(blocks)

    # --- images ----------------------------------------------------------------------------------

    def packed(
        self,
        owner: Any,
        features: Sequence[Tensor],
        sizes: Any,
        *args: Any,
        image_newline: Tensor,
        **kw: Any,
    ) -> Any:
        """The model's crops (I,N,D) of each image put together, with NaN for what is removed.

        New lines are removed, too, where a method has it so.
        """
        plain = original(owner, "pack_image_features")
        self.of_images = self.removed
        if not self.removed:
            return plain(features, sizes, *args, image_newline=image_newline, **kw)
        if isinstance(sizes, Tensor):
            sizes = sizes.tolist()  # waits for a GPU in place of the model, once
        line = F.pad(image_newline, (0, 1), value=1.0)
        tokens, lengths = plain(
            list(map(weighed, features)), sizes, *args, image_newline=line, **kw
        )
        bare, _ = plain([x[..., :1] for x in features], sizes, *args, image_newline=None, **kw)
        self.of_images = self.removed = 0
        for i, (crops, size) in enumerate(zip(features, sizes, strict=True)):
            rows, n = len(tokens[i]) - len(bare[i]), crops.shape[1]
            lines = torch.full((rows, 1), self.newlines, device=crops.device)
            if len(crops) > 1:
                shape = rows, (len(bare[i]) - n) // rows
                stays = nearest(put_together(owner, crops[1:], size), shape)[0]
                lines = torch.cat([stays, lines], 1)
            stays = F.pad(lines.flatten(), (n, 0), value=True)
            tokens[i] = unweighed(tokens[i]).masked_fill(~stays[:, None], torch.nan)
            self.removed += round(len(bare[i]) * self.missing / n) + rows * (not self.newlines)
        self.of_images = self.removed
        return tokens, lengths

    # --- videos ----------------------------------------------------------------------------------

    def videos(
        self, plain: Callable[..., Any], pixel_values_videos: Tensor, *args: Any, **kw: Any
    ) -> Any:
        """Encode videos (B,T,C,H,W); methods act on them once their frames are pooled."""
        methods = self.before, self.after
        self.frames, self.later = pixel_values_videos.shape[1], [*self.before, *self.after]
        self.before = self.after = []
        try:
            return plain(pixel_values_videos, *args, **kw)
        finally:
            self.frames, (self.before, self.after) = 0, methods

    def pooled(self, plain: Callable[..., Any], x: Tensor) -> Tensor:
        """Projected tokens (I,N,D) of all frames -> the fewer (I,M,D) that go on."""
        x = self._acted(self._fewer(plain, x))
        self.removed += self.of_images
        return x

    def _fewer(self, plain: Callable[..., Any], x: Tensor) -> Tensor:
        """Tokens (I,N,D) of which removed ones are NaN -> as the model pools them (I,M,D)."""
        if not self.removed:
            return plain(x)  # type: ignore[no-any-return]
        n, square = x.shape[1], alive(x).view(len(x), isqrt(x.shape[1]), -1)
        x = unweighed(plain(weighed(x)))
        stays = nearest(square, (isqrt(x.shape[1]),) * 2)
        self.removed = round(len(x) * x.shape[1] * self.missing / n)
        return x.masked_fill(~stays.view(len(x), -1, 1), torch.nan)

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """The projection with its methods, which act behind it on frames that were pooled ahead."""
        if not (self.frames and self.tower.pools_ahead):
            return super().block(layer, block, x, *args, **kw)
        self.number_batch()
        y = self._acted(self.tower.attend(block, x, self, None, {}))
        self.removed += self.of_images
        return y

    def resampled(self, plain: Callable[..., Any], x: Tensor) -> Tensor:
        """The features (I,N,C) of all frames -> the fewer (I,M,C) that are projected."""
        x = self.ahead(x)
        self._drop_hidden()
        self.missing = self.tower.whole - x.shape[1]
        self.removed, self.expected = len(x) * self.missing, self.tower.whole
        return self._fewer(plain, self._marked(x) if self.missing else x)

    def _acted(self, x: Tensor) -> Tensor:
        """Let methods act on frames (I,M,D), those of a video as one sequence.

        Raises:
            Unsupported: methods act in the image encoder, too.
        """
        if not self.later:
            return x
        if self.removed:
            names = " and ".join(f"'{reduction.reducer.name}'" for reduction in self.later)
            raise Unsupported(
                f"the frames of a video lost tokens in the image encoder, and {names} at the "
                "projector needs all: reduce a video in one of the two"
            )
        shape, side = x.shape, isqrt(x.shape[1])
        self.image, self.fixed, self.seen = None, 0, {}  # no block of the encoder has these tokens
        x = self._begun(x.reshape(len(x) // self.frames, -1, x.shape[2]))
        self.features = None  # which are not these tokens
        if self.tower.drops_class:  # places count it
            self.place = self.place + self.tower.prefix
        self.grid = (side, side) if side * side == shape[1] else None
        self.expected = x.shape[1]
        for reduction in self.later:
            x = self._step(reduction, 0, x)
        super()._report(self.expected, x.shape[1])
        if missing := self.expected - x.shape[1]:
            self.removed, x = len(x) * missing, self._marked(x)
        return x.view(shape)


def alive(x_IND: Tensor) -> Tensor:
    """(I,N) which tokens were not removed."""
    return ~x_IND[..., 0].isnan()


def weighed(x_IND: Tensor) -> Tensor:
    """(I,N,D) -> (I,N,D+1): removed tokens as zeros, and a last channel that is 1 for others."""
    there = alive(x_IND)[..., None]
    return torch.cat([x_IND.masked_fill(~there, 0), there.to(x_IND.dtype)], -1)


def unweighed(x: Tensor) -> Tensor:
    """The mean of what remains, from sums of `weighed` tokens; NaN where nothing does."""
    return x[..., :-1] / x[..., -1:]


def nearest(alive_IHW: Tensor, shape: tuple[int, int]) -> Tensor:
    """(I,*shape) whether the token is there that each place of a smaller grid is nearest to."""
    return F.interpolate(alive_IHW[:, None].float(), shape, mode="nearest-exact")[:, 0] > 0


def put_together(owner: Any, crops: Tensor, size: Sequence[int]) -> Tensor:
    """(1,H,W) which tokens remain of an image of a `size`, from its crops (I,N,D)."""
    code, config = sys.modules[type(owner).__module__], owner.config
    side, vision = isqrt(crops.shape[1]), config.vision_config
    down, across = code.get_anyres_image_grid_shape(
        size, config.image_grid_pinpoints, vision.image_size
    )
    square = alive(crops).view(down, across, side, side).transpose(1, 2)
    square = code.unpad_image(square.reshape(1, down * side, across * side), size)
    return square  # type: ignore[no-any-return]
