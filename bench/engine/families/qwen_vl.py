"""The image encoder and the patch merger of Qwen2-VL, 2.5 and 3: all images' patches lie packed.

Each 2x2 group of patches stands together in the sequence and becomes one token of the language
model. At the projector such a group is a token: its patches side by side, as the merger reads them.
Qwen3-VL has further mergers behind some blocks of its encoder (DeepStack), whose features are added
to the language model's image tokens.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.core.site import EncoderSite
from bench.engine.families.hf import Family, VisionTower
from bench.engine.families.one_image import in_rows
from bench.engine.families.packed import MergerPass, PackedPass
from bench.engine.families.windows import Windows
from bench.engine.tower import Run, Tower, original, override, shrink

_FAMILY = Family("vision", ("blocks",), ("norm1", "attn"), ("norm2", "mlp"), "", masked=False)


class PackedTower(VisionTower):
    """The image encoder.

    Attributes:
        side: patches along a side of a group.
        windowed: the blocks whose attention is within windows (most of Qwen2.5-VL's).
    """

    pass_class = PackedPass
    site_class = EncoderSite
    linked = ("projector", "language")
    restores = True  # the merger reads whole groups

    def __init__(self, part: Any) -> None:
        """Find its blocks."""
        super().__init__(part, _FAMILY)
        self.side = int(part.spatial_merge_size)
        layers = range(len(self.blocks))
        self.windowed = set(layers) - set(getattr(part, "fullatt_block_indexes", layers))
        self.lengths: list[int] = []

    @property
    def size(self) -> Callable[..., tuple[int, int]] | None:
        """Maps the height and width of an image to smaller ones; None leaves images as they are."""
        return getattr(self.part, "_size", None)

    def in_windows(self, shape: tuple[int, int]) -> Windows | None:
        """How the groups of an image with so many rows and columns of patches lie in windows."""
        if not hasattr(self.part, "window_size"):
            return None
        rows, columns = (n // self.side for n in shape)
        across = self.part.window_size // self.side // self.part.patch_size
        return Windows((rows, columns), across, self.side**2)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note the images' sizes, which a block with windows is not told."""

        def note(_: Any, args: Any, kw: Any) -> None:
            shapes = [(h, w) for t, h, w in kw["grid_thw"].tolist() for _ in range(t)]
            self.lengths = [h * w for h, w in map(self.fitted, shapes)]

        with self.part.register_forward_pre_hook(note, with_kwargs=True):
            yield

    def counts(self, x: Tensor, y: Tensor, kw: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Tokens of each image."""
        return [(n, n) for n in self.lengths]

    def windows(self, layer: int, kw: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Patches of each window, where the block has them."""
        inside = layer in self.windowed
        return [(n, n) for n in kw["cu_seqlens"].diff().tolist()] if inside else []

    def grid(self, patches: int) -> tuple[int, int] | None:
        """None: each image has its own, which its pass knows."""
        return None

    def attend(self, block: Any, x: Tensor, run: Run, mask: Tensor | None, kw: Any) -> Tensor:
        """Norm, attention within each image, residual add. (N,C) -> (N,C)."""
        return x + block.attn(block.norm1(x), **kw)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def install(self, run: Any) -> Iterator[None]:
        """Tap the attention; note the images' sizes at the start, and what DeepStack makes."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._tap(run))
            forward = partial(run.forward, original(self.part))
            stack.enter_context(override(self.part, "forward", forward))
            for merger in getattr(self.part, "deepstack_merger_list", ()):
                deepen = partial(run.deepen, original(merger))
                stack.enter_context(override(merger, "forward", deepen))
            yield

    @contextlib.contextmanager
    def resize(self, size: Callable[..., Any]) -> Iterator[None]:
        """Have images made smaller, to whole groups, before they are embedded."""
        with override(self.part, "_size", size):
            yield

    def fitted(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of an image's patches -> of those that are embedded."""
        unit, patch = self.side * self.part.config.patch_size, self.part.config.patch_size
        if self.size is None:
            return shape
        height, width = self.size(*(n * patch for n in shape), (unit, unit))
        return height // patch, width // patch

    def smaller(self, pixels: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Patches (N,P) of images of `shapes` -> those of smaller images, and their grid_thw."""
        config, side = self.part.config, self.side
        patch, frames = config.patch_size, (config.in_channels, config.temporal_patch_size)
        smaller, grids = [], []
        for rows, (h, w) in zip(pixels.split([h * w for h, w in shapes]), shapes, strict=True):
            patches = rows.view(h // side, w // side, side, side, *frames, patch, patch)
            image = patches.permute(4, 5, 0, 2, 6, 1, 3, 7).reshape(1, -1, h * patch, w * patch)
            h, w = self.fitted((h, w))
            image = shrink(image, (h * patch, w * patch))
            image = image.view(*frames, h // side, side, patch, w // side, side, patch)
            smaller.append(image.permute(2, 5, 3, 6, 0, 1, 4, 7).reshape(-1, pixels.shape[1]))
            grids.append([1, h, w])
        return torch.cat(smaller), torch.tensor(grids)

    def positions(self, grid_thw: Tensor, device: torch.device) -> dict[str, Tensor]:
        """What the encoder works out of its images' sizes: rows and columns, learned positions."""
        shapes = [(h, w) for _, h, w in grid_thw.tolist()]
        rows = [in_rows(*shape, self.side) for shape in shapes]
        at = [torch.stack([i // w, i % w], 1) for i, (_, w) in zip(rows, shapes, strict=True)]
        found = {"position_ids": torch.cat(at)}
        if hasattr(self.part, "pos_embed"):
            part = self.part
            found["interp_indices"], found["interp_weights"] = sys.modules[
                type(part).__module__
            ].get_vision_interpolation_indices_and_weights(
                grid_thw,
                num_grid_per_side=part.num_grid_per_side,
                mode=part.interpolation_mode,
                align_corners=part.interpolation_align_corners,
                spatial_merge_size=self.side,
            )
        return {name: t.to(device) for name, t in found.items()}


class MergerTower(Tower):
    """The patch merger; one block, groups of patches before it and tokens after it."""

    name = "projector"
    pass_class = MergerPass
    prefix = n_protected = whole = 0
    linked = ("vision", "language")
    grid_order = True
    has_vision = drops_class = False
    guide = None

    def __init__(self, encoder: Any) -> None:
        """The encoder's last merger is its own block."""
        self.blocks, self.joins = [encoder.merger], int(encoder.spatial_merge_size) ** 2
        self.width_in = int(encoder.merger.hidden_size) // self.joins
        self.mappers = [encoder.merger, *getattr(encoder, "deepstack_merger_list", ())]

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
