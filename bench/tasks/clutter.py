"""Cluttered scenes: one small drawing anywhere on a patterned ground, among shapes without a name.

What an image encoder must keep of such a scene is about a quarter of it. A scene is composed in
whole numbers from a drawing and a seed, so that a test set needs no images of its own and comes out
the same on every machine.

    scene(drawing, np.random.default_rng([0, 5]))
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Bytes = NDArray[np.uint8]

SIDE = 224  # pixels of a scene
SMALLEST, LARGEST = 96, 144  # pixels of the drawing's side
OCTAVES = ((4, 20), (8, 14), (16, 9), (32, 6), (64, 4))  # cells a side, and weight, of the ground
SHAPES = (6, 12)  # the fewest and the most


def scene(drawing: Bytes, rng: np.random.Generator) -> Bytes:
    """Return a scene (224,224,3) with a drawing (S,S,3) in it, whose white becomes the ground."""
    image = Image.fromarray(_ground(rng))
    _add_shapes(image, rng)
    pixels = np.array(image)
    side = int(rng.integers(SMALLEST, LARGEST + 1))
    top, left = (int(at) for at in rng.integers(0, SIDE - side + 1, 2))
    small = np.asarray(Image.fromarray(drawing).resize((side, side), Image.Resampling.BOX))
    place = pixels[top : top + side, left : left + side]
    place[:] = small.astype(np.uint16) * place // 255
    return pixels


def _ground(rng: np.random.Generator) -> Bytes:
    """Return a light ground (224,224,3): coarse to fine patches of colour on top of each other."""
    tint = rng.integers(160, 236, 3)
    total = np.zeros((SIDE, SIDE, 3), np.int64)
    for cells, weight in OCTAVES:
        colour = rng.integers(0, 256, (cells, cells, 3))
        grey = rng.integers(0, 256, (cells, cells, 1))
        patches = Image.fromarray(((colour + 2 * grey) // 3).astype(np.uint8))
        smooth = patches.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        total += weight * (np.asarray(smooth).astype(np.int64) - 128) // 64
    ground: Bytes = np.clip(tint + total, 110, 255).astype(np.uint8)
    return ground


def _add_shapes(image: Image.Image, rng: np.random.Generator) -> None:
    """Draw ellipses, rectangles and lines that the ground shines through."""
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(int(rng.integers(SHAPES[0], SHAPES[1] + 1))):
        width, height = (int(size) for size in rng.integers(12, 60, 2))
        left, top = (int(at) for at in rng.integers(-10, SIDE - 10, 2))
        red, green, blue = (int(part) for part in rng.integers(60, 255, 3))
        colour = (red, green, blue, int(rng.integers(60, 160)))
        box = (left, top, left + width, top + height)
        kind = int(rng.integers(3))
        if kind == 0:
            draw.ellipse(box, fill=colour)
        elif kind == 1:
            draw.rectangle(box, fill=colour)
        else:
            draw.line(box, fill=colour, width=int(rng.integers(2, 9)))
