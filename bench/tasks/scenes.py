"""Scenes: one to four small emoji drawings on a shaded ground, with questions about them.

A scene is composed from the committed drawings by a seed, so that a test set needs no images of its
own. Training scenes have other seeds: other objects, places, sizes and grounds, the same drawings.

    scenes(1000, seed=0)[0].question
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.assets import embedded

Bytes = NDArray[np.uint8]

SIDE, CELL = 64, 32  # pixels of a scene and of its four cells
SMALLEST, LARGEST = 14, 22  # pixels of a drawing's side
PLACES = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("one", "two", "three", "four")
KINDS = ("what", "there", "many", "where", "caption")
# Labels of emojibase -> the name used in questions and answers; told apart at 32 pixels.
NAMES = {
    "cat face": "cat", "pig face": "pig", "frog": "frog", "penguin": "penguin", "fish": "fish",
    "red apple": "apple", "banana": "banana", "grapes": "grapes", "carrot": "carrot",
    "mushroom": "mushroom", "automobile": "car", "rocket": "rocket", "sun": "sun",
    "cloud": "cloud", "fire": "fire", "deciduous tree": "tree",
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A scene and a question: image (64,64,3), what was asked, its kind, the answer."""

    image: Bytes
    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Placed:
    """A drawing in a scene: its name, and the top, left and side of its square in pixels."""

    name: str
    top: int
    left: int
    side: int


@cache
def library() -> dict[str, Bytes]:
    """The committed drawing (64,64,3), on white, of each name."""
    images, texts = embedded.emoji_test()
    by_label = {text.partition(":")[0]: image for image, text in zip(images, texts, strict=True)}
    return {name: by_label[label] for label, name in NAMES.items()}


def compose(rng: np.random.Generator) -> tuple[Bytes, dict[int, Placed]]:
    """A scene's image (64,64,3) and what is in which of its four cells."""
    drawn = library()
    image = _ground(rng)
    count = int(rng.integers(1, 5))
    cells = sorted(rng.choice(4, count, replace=False).tolist())
    names = [list(drawn)[i] for i in rng.choice(len(drawn), count, replace=False)]
    objects = {}
    for cell, name in zip(cells, names, strict=True):
        side = int(rng.integers(SMALLEST, LARGEST + 1))
        top = cell // 2 * CELL + int(rng.integers(CELL - side + 1))
        left = cell % 2 * CELL + int(rng.integers(CELL - side + 1))
        objects[cell] = Placed(name, top, left, side)
        _paste(image, drawn[name], objects[cell])
    return image, objects


def _ground(rng: np.random.Generator) -> Bytes:
    """A ground (64,64,3) that goes from one light colour to another, in any direction."""
    one, other = rng.integers(170, 256, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    at = np.linspace(-1, 1, SIDE)
    slope = (at[:, None] * np.sin(angle) + at * np.cos(angle)) / np.sqrt(2)
    share = ((slope + 1) / 2)[..., None]
    ground: Bytes = np.rint(one * (1 - share) + other * share).astype(np.uint8)
    return ground


def _paste(image: Bytes, drawing: Bytes, at: Placed) -> None:
    """Draw a drawing, whose white takes the ground's colour."""
    size = (at.side, at.side)
    small = np.asarray(Image.fromarray(drawing).resize(size, Image.Resampling.BOX))
    there = image[at.top : at.top + at.side, at.left : at.left + at.side]
    there[:] = (small.astype(np.uint16) * there // 255).astype(np.uint8)


def ask(
    kind: str,
    placed: Mapping[int, Placed],
    rng: np.random.Generator,
    names: Collection[str] = tuple(NAMES.values()),
) -> tuple[str, str]:
    """A question of a kind about a scene of things with such names, and its answer."""
    objects = {cell: placed[cell].name for cell in sorted(placed)}
    cells = list(objects)
    cell = cells[int(rng.integers(len(cells)))]
    if kind == "what":
        return f"what is at the {PLACES[cell]} ?", objects[cell]
    if kind == "where":
        return f"where is the {objects[cell]} ?", PLACES[cell]
    if kind == "many":
        return "how many objects are there ?", NUMBERS[len(objects) - 1]
    if kind == "caption":
        return "describe the image .", " and ".join(objects.values())
    if rng.integers(2):
        return f"is there a {objects[cell]} ?", "yes"
    return f"is there a {another(objects.values(), rng, names)} ?", "no"


def another(
    there: Collection[str],
    rng: np.random.Generator,
    names: Collection[str] = tuple(NAMES.values()),
) -> str:
    """A name that is not among those that are there."""
    others = [name for name in names if name not in there]
    return others[int(rng.integers(len(others)))]


def describe(placed: Mapping[int, Placed]) -> str:
    """A caption that says what is where."""
    parts = [f"a {placed[cell].name} at the {PLACES[cell]}" for cell in sorted(placed)]
    return " and ".join(parts)


def described(count: int, seed: int) -> list[tuple[Bytes, str]]:
    """So many scenes (64,64,3), each with its caption."""
    composed = [compose(np.random.default_rng([seed, i, 2])) for i in range(count)]
    return [(image, describe(objects)) for image, objects in composed]


def depicted(
    placed: Mapping[int, Placed],
    side: int,
    pixels: int = SIDE,
    names: Collection[str] = tuple(NAMES.values()),
) -> NDArray[np.int64]:
    """What each of side x side patches of an image of so many pixels a side is a part of.

    0 is the ground, else 1 + the number of its name.
    """
    shown = np.zeros((side, side), np.int64)
    pixels, order = pixels // side, list(names)
    for drawing in placed.values():
        rows, columns = (
            slice((at + pixels // 2) // pixels, (at + drawing.side + pixels // 2) // pixels)
            for at in (drawing.top, drawing.left)
        )
        shown[rows, columns] = 1 + order.index(drawing.name)
    return shown


def scenes(count: int, seed: int) -> list[Scene]:
    """So many scenes, one question each, kinds in turn."""
    composed = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        image, objects = compose(rng)
        kind = KINDS[i % len(KINDS)]
        question, answer = ask(kind, objects, rng)
        composed.append(Scene(image, question, answer, kind))
    return composed


def words(names: Collection[str] = tuple(NAMES.values())) -> list[str]:
    """Every word of the questions and answers about things with such names."""
    text = [
        *names, *PLACES, *NUMBERS, "yes no and", "what is at the ?", "where is the ?",
        "how many objects are there ?", "describe the image .", "is there a ?",
    ]  # fmt: skip
    return sorted({word for line in text for word in line.split()})
