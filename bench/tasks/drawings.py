"""Emoji drawings of 224 pixels: names to be found, and questions about scenes of several.

In `emoji-clutter` the drawing is a quarter of a patterned scene, so that tokens can be dropped, and
which ones matters. In `emoji-clutter-vqa` the question decides, of one to four small drawings.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from bench.assets import embedded
from bench.tasks import clutter, scenes
from bench.tasks.base import hash_of
from bench.tasks.registry import task
from bench.tasks.retrieval import Retrieval
from bench.tasks.vqa import Question, QuestionAnswering

SEED = 0
QUESTIONS = 1000


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


@dataclass(frozen=True)
class Scenes:
    """Cluttered scenes of a seed with several drawings, composed when they are opened."""

    seed: int
    placed: Sequence[Mapping[int, scenes.Placed]]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.placed)

    def name(self, index: int) -> str:
        """Return the scene's number."""
        return f"scene {index}"

    def open(self, index: int) -> Image.Image:
        """Return one image of 224 x 224 pixels."""
        rng = np.random.default_rng([self.seed, index, 1])
        return Image.fromarray(clutter.draw(self.placed[index], _named(), rng))


@cache
def _named() -> dict[str, list[clutter.Bytes]]:
    """Return the held-out drawing (224,224,3) of each name that is asked about."""
    images = {text.partition(":")[0]: image for image, text in zip(*_test(), strict=True)}
    return {
        name: [np.asarray(Image.open(io.BytesIO(images[label])).convert("RGB"))]
        for label, name in clutter.NAMES.items()
    }


@task(
    "emoji-clutter-vqa",
    "1,000 questions about cluttered scenes of 224 pixels with one to four small drawings",
)
def questions(count: int = QUESTIONS, seed: int = SEED) -> QuestionAnswering:
    """Return questions about scenes of a held-out house's drawings, kinds in turn."""
    names, placed, asked = tuple(clutter.NAMES.values()), [], []
    for i in range(count):
        placed.append(clutter.arrange(np.random.default_rng([seed, i])))
        kind = scenes.KINDS[i % len(scenes.KINDS)]
        text, answer = scenes.ask(kind, placed[i], np.random.default_rng([seed, i, 2]), names)
        asked.append(Question(i, text, (answer,), kind))
    pictures = Scenes(seed, placed)
    # The first tell how scenes are composed.
    first = [pictures.open(i).tobytes() for i in range(min(8, count))]
    version = hash_of(*first, [(one.text, one.answers) for one in asked], placed)
    return QuestionAnswering("emoji-clutter-vqa", version, pictures, asked)
