"""Random changes to emoji drawings, so that a drawing is never seen twice the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.assets.embedded import EMOJI_MEAN, EMOJI_STD


def image_processor(kind: type, pixels: int, **more: Any) -> Any:
    """An image processor of a transformers class that does what `normalise` does, and resizes."""
    usual = {"size": {"height": pixels, "width": pixels}, "do_resize": True}
    return kind(image_mean=list(EMOJI_MEAN), image_std=list(EMOJI_STD), **{**usual, **more})


def normalise(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """Turn images (N,H,W,3) uint8 into normalised floats (N,3,H,W)."""
    x = torch.as_tensor(np.array(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (EMOJI_MEAN, EMOJI_STD))
    return (x - mean) / std


def augment(images: Tensor, pixels: int, rng: torch.Generator) -> Tensor:
    """Move, scale, turn and recolour drawings (B,64,64,3) uint8; return (B,3,pixels,pixels)."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (EMOJI_MEAN, EMOJI_STD))
    return (distort(images, pixels, rng) - mean) / std


def distort(images: Tensor, pixels: int, rng: torch.Generator) -> Tensor:
    """Like `augment`, but as colours from 0 to 1."""
    count = len(images)

    def draw(*size: int) -> Tensor:
        """Return uniform numbers in [-1, 1)."""
        return torch.rand(*size, generator=rng) * 2 - 1

    angle, scale = draw(count) * 0.2, torch.exp(draw(count, 2) * 0.12 + draw(count, 1) * 0.15)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([cos * scale[:, 0], -sin * scale[:, 1]], 1),
        torch.stack([sin * scale[:, 0], cos * scale[:, 1]], 1),
    ]
    matrix = torch.cat([torch.stack(rows, 1), draw(count, 2, 1) * 0.12], 2)
    ink = 1 - images.permute(0, 3, 1, 2).float() / 255  # white paper is zero, as is the padding
    if pixels != images.shape[1]:
        ink = F.interpolate(ink, size=pixels, mode="area")
    grid = F.affine_grid(matrix, [count, 3, pixels, pixels], align_corners=False)
    x = 1 - F.grid_sample(ink, grid, align_corners=False)
    mix = torch.eye(3) + 0.12 * draw(count, 3, 3)
    x = torch.einsum("bij,bjhw->bihw", mix / mix.sum(2, keepdim=True), x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + 0.5 * draw(count, 1, 1, 1))
    x = 1 - (1 - x) * (1 + 0.15 * draw(count, 1, 1, 1))
    return x.clamp(0, 1)
