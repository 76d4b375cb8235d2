"""Cluttered scenes: small drawings anywhere on a patterned ground, among shapes without a name.

One drawing to be found (`scene`), or one to four to be asked about (`arrange`, `draw`): what an
image encoder must keep is about a quarter of it. A scene is composed in whole numbers from drawings
and a seed, so that a test set needs no images of its own and comes out the same on every machine.

    scene(drawing, np.random.default_rng([0, 5]))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bench.tasks.scenes import Placed

Bytes = NDArray[np.uint8]

SIDE = 224  # pixels of a scene
SMALLEST, LARGEST = 96, 144  # pixels of the side of a drawing that is alone
CELL, FEWEST, MOST = 112, 48, 80  # pixels of one of four cells; of the side of a drawing in it
# Labels of emojibase -> the names used in questions and answers.
NAMES = {
    **{name: name for name in (
        "dog", "cat", "lion", "horse", "cow", "pig", "elephant", "rabbit", "bear", "penguin", "owl",
        "frog", "turtle", "snake", "fish", "crab", "butterfly", "cactus", "mushroom", "banana",
        "carrot", "pizza", "bus", "rocket", "bicycle", "sun", "star", "umbrella", "bell", "guitar",
        "key",
    )},
    "automobile": "car",
}  # fmt: skip
OCTAVES = ((4, 20), (8, 14), (16, 9), (32, 6), (64, 4))  # cells a side, and weight, of the ground
SHAPES = (6, 12)  # the fewest and the most


def scene(drawing: Bytes, rng: np.random.Generator) -> Bytes:
    """Return a scene (224,224,3) with a drawing (S,S,3) in it, whose white becomes the ground."""
    pixels = _clutter(rng)
    side = int(rng.integers(SMALLEST, LARGEST + 1))
    top, left = (int(at) for at in rng.integers(0, SIDE - side + 1, 2))
    _paste(pixels, drawing, top, left, side)
    return pixels


def arrange(rng: np.random.Generator) -> dict[int, Placed]:
    """Return one to four things, and where in which of a scene's four cells each is."""
    count = int(rng.integers(1, 5))
    cells = sorted(rng.choice(4, count, replace=False).tolist())
    names = [list(NAMES.values())[i] for i in rng.choice(len(NAMES), count, replace=False)]
    placed = {}
    for cell, name in zip(cells, names, strict=True):
        side = int(rng.integers(FEWEST, MOST + 1))
        top = cell // 2 * CELL + int(rng.integers(CELL - side + 1))
        left = cell % 2 * CELL + int(rng.integers(CELL - side + 1))
        placed[cell] = Placed(name, top, left, side)
    return placed


def draw(
    placed: Mapping[int, Placed], drawn: Mapping[str, Sequence[Bytes]], rng: np.random.Generator
) -> Bytes:
    """Return the scene (224,224,3) of such an arrangement.

    Args:
        placed: what is where.
        drawn: of each name, drawings (S,S,3) of the thing, of which one is taken.
        rng: decides on the drawings and the clutter.
    """
    pixels = _clutter(rng)
    for thing in placed.values():
        ways = drawn[thing.name]
        one = ways[int(rng.integers(len(ways)))]
        _paste(pixels, one, thing.top, thing.left, thing.side)
    return pixels


def _clutter(rng: np.random.Generator) -> Bytes:
    """Return a patterned ground with shapes on it (224,224,3)."""
    image = Image.fromarray(_ground(rng))
    _add_shapes(image, rng)
    return np.array(image)


def _paste(pixels: Bytes, drawing: Bytes, top: int, left: int, side: int) -> None:
    """Draw a drawing there, so large, its white the ground's colour."""
    small = np.asarray(Image.fromarray(drawing).resize((side, side), Image.Resampling.BOX))
    place = pixels[top : top + side, left : left + side]
    place[:] = small.astype(np.uint16) * place // 255


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
