"""Image encoders whose patches are joined to groups, and their projectors.

InternVL joins 2x2 patches, SmolVLM and Idefics3 as many as their configuration says; Gemma 3 takes
the mean of 4x4.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import isqrt
from typing import Any

from torch import Tensor

from bench.engine.families.image_towers import Layout, NormedTower, ProjectorTower, side_of
from bench.engine.families.joined import JoinedImagePass, JoinedPass
from bench.engine.tower import Run, original, override, shrink


class JoinedImageTower(NormedTower):
    """The image encoder.

    Attributes:
        side: patches along a side of a group, which the projector's tower says.
        size: maps the height and width of an image to smaller ones; None leaves images as they are.
    """

    pass_class = JoinedImagePass
    restores = True  # the projector reads whole groups
    side = 1
    size: Callable[..., tuple[int, int]] | None = None

    @contextlib.contextmanager
    def install(self, run: Any) -> Iterator[None]:
        """Look at the images first."""
        forward = partial(run.forward, original(self.part))
        with super().install(run), override(self.part, "forward", forward):
            yield

    @contextlib.contextmanager
    def resize(self, size: Callable[..., Any]) -> Iterator[None]:
        """Have images made smaller, to whole groups, before they are embedded."""
        with override(self, "size", size):
            yield

    def smaller(self, images: Tensor) -> Tensor:
        """Images (I,C,H,W) as small as `size` says."""
        assert self.size is not None
        unit = side_of(self.part.config.patch_size) * self.side
        return shrink(images, self.size(*images.shape[-2:], (unit, unit)))


class JoinedTower(ProjectorTower):
    """The projector; a token ahead of it is a group of patches, side by side.

    Attributes:
        side: patches along a side of a group.
    """

    pass_class = JoinedPass
    side: int

    def __init__(self, module: Any, vision: Any, model: Any, layout: Layout) -> None:
        """A class token goes no further."""
        super().__init__(module, vision, model, layout)
        self.encoder_has_class, self.has_vision = vision.has_anchor, False
        self.prefix = self.n_protected = 0
        self.side = vision.side = self.patches_of_a_group(model.config)
        self.joins = self.side**2
        self.patches = self.whole = self.patches // self.joins

    @property
    def lacks_anchor(self) -> str:
        """Why no method can rank by the class token."""
        if not self.encoder_has_class:
            return super().lacks_anchor
        return f"this model's projector gets groups of {self.joins} patches without it"

    def counts(self, x: Tensor, y: Tensor, kw: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Groups of an image."""
        return [(y.shape[1], y.shape[1])]

    def grid(self, patches: int) -> tuple[int, int]:
        """A square of groups."""
        return isqrt(patches), isqrt(patches)

    @abstractmethod
    def patches_of_a_group(self, config: Any) -> int:
        """How many patches a group has along a side."""

    @abstractmethod
    def joined(self, x: Tensor) -> Tensor:
        """Patches (I,N,C) -> groups (I,G,J*C), as the model joins them."""

    def join(self, patches: Tensor) -> Tensor:
        """The patches (L,J,C) of some groups -> the groups (L,J*C)."""
        return patches.flatten(1)


class ShuffleTower(JoinedTower):
    """InternVL's, whose model joins patches ahead of it."""

    def patches_of_a_group(self, config: Any) -> int:
        """The inverse of what the grid's side is multiplied by."""
        return int(1 / config.downsample_ratio)

    def joined(self, x: Tensor) -> Tensor:
        """Patches (I,N,C) -> groups (I,G,J*C), as the model joins them."""
        rows, ratio = isqrt(x.shape[1]), self.model.config.downsample_ratio
        square = x.reshape(len(x), rows, rows, x.shape[2])
        groups: Tensor = self.owner.pixel_shuffle(square, scale_factor=ratio)
        return groups.flatten(1, 2)


class ConnectorTower(JoinedTower):
    """That of Idefics3 and SmolVLM, which joins patches itself."""

    def patches_of_a_group(self, config: Any) -> int:
        """As the configuration says."""
        return int(config.scale_factor)

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """The projection of groups."""
        return block.modality_projection(x)  # type: ignore[no-any-return]

    def joined(self, x: Tensor) -> Tensor:
        """Patches (I,N,C) -> groups (I,G,J*C), as the model joins them."""
        return self.blocks[0].pixel_shuffle(x, self.side)  # type: ignore[operator,no-any-return]


class PoolingTower(JoinedTower):
    """Gemma 3's, where a token is the mean of a group."""

    def patches_of_a_group(self, config: Any) -> int:
        """The window of the mean."""
        return int(self.blocks[0].kernel_size)  # type: ignore[arg-type]

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """The norm and the projection of means."""
        y = block.mm_soft_emb_norm(x) @ block.mm_input_projection_weight
        return y.type_as(x)  # type: ignore[no-any-return]

    def joined(self, x: Tensor) -> Tensor:
        """Patches (I,N,C) -> means of groups (I,G,C), as the model takes them."""
        rows, block = isqrt(x.shape[1]), self.blocks[0]
        square = x.transpose(1, 2).reshape(len(x), -1, rows, rows).contiguous()
        means: Tensor = block.avg_pool(square)  # type: ignore[operator]
        return means.flatten(2).transpose(1, 2)

    def join(self, patches: Tensor) -> Tensor:
        """The patches (L,J,C) of some groups -> their means (L,C)."""
        return patches.mean(1)
