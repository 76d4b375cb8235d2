"""Which part of a picture a model sees, and how large: what the places that it names refer to.

An image processor may cut a picture's middle out, as CLIP's does, or pad it to a square, as LLaVA's
can. A place that the model names is one in what it sees, not in the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.core.errors import BenchError


@dataclass(frozen=True)
class View:
    """A rectangle in a picture's pixels; it reaches beyond the picture where that is padded."""

    left: float
    top: float
    width: float
    height: float


def view(processor: Any, size: tuple[int, int]) -> View:
    """Return the part of a picture of (width, height) that a model sees.

    Args:
        processor: the image processor of transformers that prepares the model's images.
        size: of the picture.
    """
    width, height = map(float, size)
    if getattr(processor, "image_grid_pinpoints", None):  # beside crops there is all of it
        return View(0, 0, width, height)
    if type(processor).__name__.startswith("Llava") and getattr(processor, "do_pad", False):
        side = max(width, height)
        return View((width - side) / 2, (height - side) / 2, side, side)
    if not getattr(processor, "do_center_crop", False):
        return View(0, 0, width, height)
    across, down = _scales(processor, width, height)
    cut = processor.crop_size["width"] / across, processor.crop_size["height"] / down
    return View((width - cut[0]) / 2, (height - cut[1]) / 2, *cut)


def _scales(processor: Any, width: float, height: float) -> tuple[float, float]:
    """By how much a picture is scaled, across and down, before its middle is cut out."""
    if not getattr(processor, "do_resize", False):
        return 1.0, 1.0
    size = dict(processor.size)
    if size.get("shortest_edge"):
        return (size["shortest_edge"] / min(width, height),) * 2
    return size["width"] / width, size["height"] / height


def pixels_seen(processor: Any, picture: Any) -> tuple[int, int]:
    """Return how many pixels a model sees of a picture (PIL, RGB), across and down.

    Raises:
        BenchError: the processor makes several images of it, so that there is no one size.
    """
    prepared = processor(images=[picture], return_tensors="pt")
    if "image_grid_thw" in prepared:
        _, rows, columns = prepared["image_grid_thw"][0].tolist()
        return columns * processor.patch_size, rows * processor.patch_size
    pixels = prepared["pixel_values"]
    if pixels.dim() != 4 or len(pixels) != 1:
        raise BenchError(
            "boxes in pixels are those of one image, and this model's processor makes several of "
            "each picture: choose another convention"
        )
    return pixels.shape[3], pixels.shape[2]
