"""The image encoder and the patch merger of Qwen2-VL, where the patches of all images lie packed.

Each 2x2 group of patches stands together in the sequence and becomes one token of the language
model. At the projector such a group is a token: its patches side by side, as the merger reads them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.core.site import EncoderSite
from bench.engine.families.hf import Family, VisionTower
from bench.engine.families.packed import MergerPass, PackedPass
from bench.engine.tower import Run, Tower, original, override, shrink

_FAMILY = Family("vision", ("blocks",), ("norm1", "attn"), ("norm2", "mlp"), "", masked=False)


class PackedTower(VisionTower):
    """The image encoder.

    Attributes:
        side: patches along a side of a group.
        size: maps the height and width of an image to smaller ones; None leaves images as they are.
    """

    pass_class = PackedPass
    site_class = EncoderSite
    linked = ("projector", "language")
    restores = True  # the merger reads whole groups
    size: Callable[..., tuple[int, int]] | None = None

    def __init__(self, part: Any) -> None:
        """Find its blocks."""
        super().__init__(part, _FAMILY)
        self.side = int(part.spatial_merge_size)

    def counts(self, x: Tensor, y: Tensor, kw: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Tokens of each image."""
        return [(n, n) for n in kw["cu_seqlens"].diff().tolist()]

    def grid(self, patches: int) -> tuple[int, int] | None:
        """None: each image has its own, which its pass knows."""
        return None

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """Norm, attention within each image, residual add. (N,C) -> (N,C)."""
        return x + block.attn(block.norm1(x), **kw)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def install(self, run: Any) -> Iterator[None]:
        """Tap the attention; note the images' sizes where a pass begins."""
        forward = partial(run.forward, original(self.part))
        with self._tap(run), override(self.part, "forward", forward):
            yield

    @contextlib.contextmanager
    def resize(self, size: Callable[..., Any]) -> Iterator[None]:
        """Have images made smaller, to whole groups, before they are embedded."""
        with override(self, "size", size):
            yield

    def smaller(self, pixels: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Patches (N,P) of images of `shapes` -> those of smaller images, and their grid_thw."""
        assert self.size is not None
        config, side = self.part.config, self.side
        patch, frames = config.patch_size, (config.in_channels, config.temporal_patch_size)
        unit = side * patch
        smaller, grids = [], []
        for rows, (h, w) in zip(pixels.split([h * w for h, w in shapes]), shapes, strict=True):
            patches = rows.view(h // side, w // side, side, side, *frames, patch, patch)
            image = patches.permute(4, 5, 0, 2, 6, 1, 3, 7).reshape(1, -1, h * patch, w * patch)
            height, width = self.size(*image.shape[-2:], (unit, unit))
            image = shrink(image, (height, width))
            image = image.view(*frames, height // unit, side, patch, width // unit, side, patch)
            smaller.append(image.permute(2, 5, 3, 6, 0, 1, 4, 7).reshape(-1, pixels.shape[1]))
            grids.append([1, height // patch, width // patch])
        return torch.cat(smaller), torch.tensor(grids)


class MergerTower(Tower):
    """The patch merger; one block, groups of patches before it and tokens after it."""

    name = "projector"
    pass_class = MergerPass
    prefix = n_protected = whole = 0
    linked = ("vision", "language")
    grid_order = True
    has_vision = drops_class = False
    guide = None

    def __init__(self, module: Any) -> None:
        """It is its own block."""
        self.blocks, self.width_in = [module], int(module.ln_q.weight.shape[0])
        self.joins = int(module.hidden_size) // self.width_in

    def counts(self, x: Tensor, y: Tensor, kw: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Groups of all images."""
        return [(len(y), len(y))]

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """The merger: (G,4C) -> (G,D)."""
        return original(block)(x.view(-1, self.width_in))  # type: ignore[no-any-return]

    def grid(self, patches: int) -> tuple[int, int] | None:
        """None: each image has its own, which its pass knows."""
        return None

    @contextlib.contextmanager
    def install(self, run: Run) -> Iterator[None]:
        """Needs nothing."""
        yield
