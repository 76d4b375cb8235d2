"""Video-LLaVA: images go through one image encoder, the frames of videos through another.

Both encoders feed one projector. Of an image its patches are handed on, of a frame its class token
as well, so that a video is one sequence of 8 times 257 tokens there. Methods in the image encoder
act on images alone, and a video is refused where one is at work.

Shape suffixes: I frames, N tokens of one, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from bench.core.errors import Unsupported
from bench.engine.families.crops import CropsPass
from bench.engine.families.hf import Family
from bench.engine.families.image_towers import CropsTower, ImageTower, Layout


class StillTower(ImageTower):
    """The encoder of images; that of videos shrinks what it sees as this one does."""

    def __init__(self, part: Any, family: Family, model: Any, layout: Layout) -> None:
        """Find the other encoder."""
        super().__init__(part, family, model, layout)
        self.of_videos = model.model.video_tower

    def seers(self) -> Sequence[Any]:
        """The embeddings of both."""
        return [*super().seers(), self.of_videos.embeddings]


class FramesPass(CropsPass):
    """The state between both encoders and the language model."""

    def videos(
        self, plain: Callable[..., Any], pixel_values_videos: Tensor, *args: Any, **kw: Any
    ) -> Any:
        """Encode videos (B,T,C,H,W); methods act on them behind the projection.

        Raises:
            Unsupported: a method is at work in the other encoder.
        """
        methods = self.upstream["vision"].reductions
        if methods:
            raise Unsupported(
                f"'{methods[0].reducer.name}' acts in the encoder of images, and Video-LLaVA has "
                "another one for videos: reduce videos at the projector or in the language model"
            )
        return super().videos(plain, pixel_values_videos, *args, **kw)

    def block(self, layer: int, block: nn.Module, x: Tensor, *args: Any, **kw: Any) -> Tensor:
        """The projection with its methods, which act behind it on frames (I,N,D)."""
        if not self.frames:
            return super().block(layer, block, x, *args, **kw)
        if x.shape[1] != self.tower.patches + self.tower.prefix:
            raise Unsupported("Video-LLaVA's language model counts on videos of their full size")
        self.number_batch()
        self.of_images, self.removed = self.removed, 0
        x = self._acted(self.tower.attend(block, x, self, None, {}))
        self.removed += self.of_images
        return x

    def _lost(self, blocks: Sequence[int]) -> str:
        """Why attention cannot be read."""
        return "videos have an encoder of their own here" if self.frames else super()._lost(blocks)


class FramesTower(CropsTower):
    """The projector of both encoders."""

    pass_class = FramesPass

    @property
    def pools_ahead(self) -> bool:
        """Frames are not pooled."""
        return False
