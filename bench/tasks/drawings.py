"""Emoji drawings of 224 pixels against their names: one that fills the image, or a small one.

In `emoji-clutter` the drawing is a quarter of a patterned scene, so that tokens can be dropped, and
which ones matters.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from bench.assets import embedded
from bench.tasks import clutter
from bench.tasks.base import hash_of
from bench.tasks.registry import task
from bench.tasks.retrieval import Retrieval

SEED = 0


@dataclass(frozen=True)
class Drawings:
    """Pictures that are decoded, and with a seed put into a scene, when they are opened."""

    encoded: Sequence[bytes]
    seed: int | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.encoded)

    def name(self, index: int) -> str:
        """Return what an image is and its number."""
        return f"emoji {'drawing' if self.seed is None else 'scene'} {index}"

    def open(self, index: int) -> Image.Image:
        """Return one image of 224 x 224 pixels."""
        drawing = Image.open(io.BytesIO(self.encoded[index])).convert("RGB")
        if self.seed is None:
            return drawing
        rng = np.random.default_rng([self.seed, index])
        return Image.fromarray(clutter.scene(np.asarray(drawing), rng))


@cache
def _test() -> tuple[list[bytes], list[str]]:
    return embedded.emoji_test_224()


def _retrieval(name: str, seed: int | None) -> Retrieval:
    encoded, texts = _test()
    pictures = Drawings(encoded, seed)
    first = [pictures.open(i).tobytes() for i in range(8)]  # tells how scenes are composed
    version = hash_of(*encoded, *texts, seed, *first)
    return Retrieval(name, version, pictures, [[text] for text in texts], all_texts=True)


@task(
    "emoji-retrieval-224",
    "emoji drawings of a held-out design house, 224 pixels, against 1,050 names, both ways",
)
def retrieval() -> Retrieval:
    """Return the held-out drawings, each filling its image."""
    return _retrieval("emoji-retrieval-224", None)


@task(
    "emoji-clutter",
    "the same drawings, small and anywhere in a cluttered scene of 224 pixels, and 1,050 names",
)
def cluttered() -> Retrieval:
    """Return the held-out drawings, each in a scene."""
    return _retrieval("emoji-clutter", SEED)
