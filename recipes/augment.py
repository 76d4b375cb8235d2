"""Random changes to emoji drawings, so that a drawing is never seen twice the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.assets.embedded import EMOJI_MEAN, EMOJI_STD
from bench.assets.embedded.drawings import distort


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
