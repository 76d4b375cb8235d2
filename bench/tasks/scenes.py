"""Scenes: one to four emoji drawings on a plain ground, with questions that one look can answer.

A scene is composed from drawings by a seed, so that a test set needs no images of its own: the test
scenes are made of the committed drawings of a design house that no model was trained on.

    scenes(library, 1000, seed=0)[0].question
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

SIDE, CELL = 64, 32  # pixels of a scene and of its four cells
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
class Library:
    """Drawings (64,64,3) by name, one or several a name."""

    drawings: Mapping[str, Sequence[Bytes]]

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return list(self.drawings)


def library(images: Sequence[Bytes], labels: Sequence[str]) -> Library:
    """The drawings whose emojibase label is in `NAMES`.

    Raises:
        ValueError: a name has no drawing.
    """
    found: dict[str, list[Bytes]] = {name: [] for name in NAMES.values()}
    for image, label in zip(images, labels, strict=True):
        if label in NAMES:
            found[NAMES[label]].append(image)
    missing = [name for name, drawn in found.items() if not drawn]
    if missing:
        raise ValueError(f"no drawing of {', '.join(missing)}")
    return Library(found)


def test_library() -> Library:
    """The committed drawings of the held-out design house."""
    from bench import embedded

    images, texts = embedded.emoji_test()
    return library(list(images), [text.partition(":")[0] for text in texts])


def compose(drawn: Library, rng: np.random.Generator) -> tuple[Bytes, dict[int, str]]:
    """A scene's image (64,64,3) and what is in which of its four cells."""
    ground = rng.integers(200, 256, 3)
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[:] = ground
    count = int(rng.integers(1, 5))
    cells = sorted(rng.choice(4, count, replace=False).tolist())
    names = [drawn.names[i] for i in rng.choice(len(drawn.names), count, replace=False)]
    for cell, name in zip(cells, names, strict=True):
        choice = drawn.drawings[name]
        drawing = choice[int(rng.integers(len(choice)))]
        _paste(image, drawing, cell, int(rng.integers(24, CELL + 1)), rng)
    return image, dict(zip(cells, names, strict=True))


def _paste(image: Bytes, drawing: Bytes, cell: int, side: int, rng: np.random.Generator) -> None:
    """Draw a drawing (on white, which takes the ground's colour) anywhere in its cell."""
    from PIL import Image

    small = np.asarray(Image.fromarray(drawing).resize((side, side), Image.Resampling.BOX))
    free = CELL - side
    top = cell // 2 * CELL + int(rng.integers(free + 1))
    left = cell % 2 * CELL + int(rng.integers(free + 1))
    there = image[top : top + side, left : left + side]
    there[:] = (small.astype(np.uint16) * there // 255).astype(np.uint8)


def ask(
    kind: str, objects: Mapping[int, str], names: Sequence[str], rng: np.random.Generator
) -> tuple[str, str]:
    """A question of a kind about a scene, and its answer."""
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
    others = [name for name in names if name not in objects.values()]
    return f"is there a {others[int(rng.integers(len(others)))]} ?", "no"


def scenes(drawn: Library, count: int, seed: int) -> list[Scene]:
    """So many scenes, one question each, kinds in turn."""
    found = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        image, objects = compose(drawn, rng)
        kind = KINDS[i % len(KINDS)]
        question, answer = ask(kind, objects, drawn.names, rng)
        found.append(Scene(image, question, answer, kind))
    return found


def words() -> list[str]:
    """Every word of the questions and answers."""
    text = [
        *NAMES.values(), *PLACES, *NUMBERS, "yes no and", "what is at the ?", "where is the ?",
        "how many objects are there ?", "describe the image .", "is there a ?",
    ]  # fmt: skip
    return sorted({word for line in text for word in line.split()})
