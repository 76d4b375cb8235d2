"""Statements about two scenes, true or false: visual reasoning on the pattern of NLVR2.

Each kind is true as often as false, so that nothing can be judged without images; all but "place"
need both of them.

    pairs(500, seed=0)[0].text
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.tasks.scenes import NAMES, PLACES, Bytes, Placed, another, compose

Objects = Mapping[int, Placed]
KINDS = ("both", "only", "more", "place")
SIDES = ("left", "right")


@dataclass(frozen=True)
class Pair:
    """Two images (64,64,3), what is in them, a statement about them, and whether it is true.

    `fits`: whether each image is as the statement has it, where it can be said of each alone.
    """

    images: tuple[Bytes, Bytes]
    objects: tuple[Objects, Objects]
    text: str
    kind: str
    true: bool
    fits: tuple[bool, ...]

    @property
    def name(self) -> str:
        """The thing that the statement is about, "" if it is about none."""
        return "" if self.kind == "more" else self.text.split()[3]


def pairs(count: int, seed: int) -> list[Pair]:
    """So many pairs with a statement each, kinds in turn, true or false by the toss of a coin."""
    composed = []
    for i in range(count):
        rng = np.random.default_rng([seed, i, 1])
        kind, wanted = KINDS[i % len(KINDS)], bool(rng.integers(2))
        while True:  # until a pair of scenes and a statement come out as wanted
            (left, in_left), (right, in_right) = compose(rng), compose(rng)
            text, true, fits = state(kind, (in_left, in_right), rng)
            if true == wanted:
                break
        composed.append(Pair((left, right), (in_left, in_right), text, kind, true, fits))
    return composed


def state(
    kind: str, objects: tuple[Objects, Objects], rng: np.random.Generator
) -> tuple[str, bool, tuple[bool, ...]]:
    """A statement of a kind about what is in two scenes, whether it is true, and `Pair.fits`."""
    side = int(rng.integers(2))
    names = [{placed.name for placed in scene.values()} for scene in objects]
    if kind == "more":
        text = f"there are more objects in the {SIDES[side]} image ."
        return text, len(objects[side]) > len(objects[1 - side]), ()
    here = sorted(names[side])
    if kind == "place":
        cell = sorted(objects[side])[int(rng.integers(len(objects[side])))]
        name = objects[side][cell].name
        if rng.integers(2):  # said of a thing that is elsewhere, or not at all
            name = another([name], rng)
        text = f"there is a {name} at the {PLACES[cell]} of the {SIDES[side]} image ."
        fits = [True, True]
        fits[side] = objects[side][cell].name == name
        return text, all(fits), tuple(fits)
    name = here[int(rng.integers(len(here)))]
    if kind == "both":
        shared = sorted(names[0] & names[1])
        if shared and rng.integers(2):
            name = shared[int(rng.integers(len(shared)))]
        there = tuple(name in scene for scene in names)
        return f"there is a {name} in both images .", all(there), there
    claimed = side if rng.integers(2) else 1 - side
    alone = tuple((name in scene) == (i == claimed) for i, scene in enumerate(names))
    return f"there is a {name} only in the {SIDES[claimed]} image .", all(alone), alone


def words() -> list[str]:
    """Every word of the statements."""
    text = [
        *NAMES.values(), *PLACES, "there are more objects in the left right image .",
        "there is a only both images at of",
    ]  # fmt: skip
    return sorted({word for line in text for word in line.split()})
