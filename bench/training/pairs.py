"""Images with texts or labels to fine-tune on: what the embedded models saw, or a user's files.

Several processes share a step's batch: each opens its share of the images, and all read the same
texts, which cost little beside images and are the negatives of every image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.assets.embedded.drawings import (
    choose_texts,
    distort,
    drop_keywords,
    emoji,
    emoji_concepts,
    house_images,
)
from bench.assets.embedded.raw import ByteArray, fashion
from bench.core.errors import BenchError
from bench.models.image_tower import ImageTower
from bench.models.loaded import (
    Captioner,
    Classifier,
    Loaded,
    Multimodal,
    PairClassifier,
    Reader,
)
from bench.tasks import classification, clutter, retrieval, scenes, statements
from bench.tasks.pictures import BROKEN, Arrays

if TYPE_CHECKING:
    from bench.assets.embedded.drawings import Drawings
    from bench.tasks.pictures import Pictures
    from bench.tasks.retrieval import Retrieval

SCENES = 8192  # are called a pass over what has no end
TEST_SEEDS = 1000  # seeds below are left to evaluations
LARGE = 224  # pixels
DRAWN = 96  # pixels of a drawing that is one of several in a scene
LARGE_HOUSES = ("noto", "fluent-emoji", "fluent-emoji-flat", "emojione")
EXTRA_TEXTS = 96  # captions of other drawings than the batch's
ALL = slice(None)
SHIPPED = ("", "clutter", "drawings", "emoji", "fashion", "scenes")
GIVEN = {"imagefolder": "imagefolder:PATH", "karpathy": "karpathy:JSON[:IMAGES]"}


@dataclass(frozen=True)
class Batch:
    """Images (B,C,H,W) as the model takes them, and what belongs to them.

    `target` (B,) is the row of each image's text in `texts`, or its label where there are no texts.
    Questions come with their `answers`, and with the `pictures` of each in place of images, as the
    model's processor wants them.
    """

    images: Tensor
    texts: list[str]
    target: Tensor
    answers: Sequence[str] = ()
    pictures: Sequence[Sequence[Any]] = ()


class Pairs(Protocol):
    """Training data."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batch(self, indices: Tensor, rng: torch.Generator, share: slice = ALL) -> Batch:
        """Return a `share` of the images at `indices` (B,), with the texts of all of them.

        All chance comes from `rng`, which is the same for all shares.
        """


class Emoji:
    """Drawings of five design houses, distorted, with some of their captions' keywords dropped.

    A batch has `EXTRA_TEXTS` captions more than its images: negatives that cost little.
    """

    def __init__(self, loaded: Loaded, drawings: Drawings) -> None:
        """Keep the drawings; `loaded` says how images are prepared."""
        self.loaded, self.concepts = loaded, drawings.concepts
        self.images = torch.from_numpy(drawings.images)
        self.concept = torch.from_numpy(drawings.concept)

    def __len__(self) -> int:
        """Return the number of drawings."""
        return len(self.images)

    def batch(self, indices: Tensor, rng: torch.Generator, share: slice = ALL) -> Batch:
        """Return distorted drawings; see `Pairs`."""
        concepts = self.concept[indices]
        chosen, rows = choose_texts(concepts, len(self.concepts), EXTRA_TEXTS, rng)
        texts = [drop_keywords(self.concepts[i].text, rng) for i in chosen.tolist()]
        colours = distort(self.images[indices[share]], self.images.shape[1], rng)
        pixels = (colours * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        images = _prepared(self.loaded, [Image.fromarray(p) for p in pixels])
        return Batch(images, texts, rows[share])


class LargeDrawings:
    """Drawings of 224 pixels by four design houses, of what an `ImageTower` knows by name.

    Half of them fill the image, distorted; half are small, anywhere in a cluttered scene. A batch
    has all names, each image's own and those of all others.
    """

    def __init__(self, loaded: ImageTower, cache: Path | None) -> None:
        """Render what is not in the cache, which takes minutes."""
        self.loaded, self.texts = loaded, list(loaded.rows)
        named = {emoji.text: name for name, emoji in emoji_concepts(cache).items()}
        slugs = [named[text] for text in self.texts]
        drawn = [house_images(house, cache, LARGE) for house in LARGE_HOUSES]
        self.images = torch.from_numpy(np.stack([house[name] for house in drawn for name in slugs]))

    def __len__(self) -> int:
        """Return the number of drawings."""
        return len(self.images)

    def batch(self, indices: Tensor, rng: torch.Generator, share: slice = ALL) -> Batch:
        """Return drawings and scenes; see `Pairs`."""
        seeds = torch.randint(2**31, (len(indices),), generator=rng)[share].tolist()
        indices = indices[share]
        filling = distort(self.images[indices], LARGE, rng)
        pixels = (filling * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for i, seed in enumerate(seeds):
            if seed % 2:
                pixels[i] = clutter.scene(pixels[i], np.random.default_rng(seed))
        images = _prepared(self.loaded, [Image.fromarray(p) for p in pixels])
        return Batch(images, self.texts, indices % len(self.texts))


class Files:
    """Pictures in files, each with one of its captions."""

    def __init__(self, loaded: Loaded, task: Retrieval) -> None:
        """Keep the pictures and captions of a retrieval task."""
        self.loaded, self.pictures, self.texts = loaded, task.prepared.pictures, task.texts
        self.usable = [i for i, texts in enumerate(task.texts) if texts]

    def __len__(self) -> int:
        """Return the number of pictures with a caption."""
        return len(self.usable)

    def batch(self, indices: Tensor, rng: torch.Generator, share: slice = ALL) -> Batch:
        """Return pictures as they are; see `Pairs`."""
        chosen = [self.usable[i] for i in indices.tolist()]
        pick = torch.rand(len(chosen), generator=rng).tolist()
        texts = [
            self.texts[i][int(p * len(self.texts[i]))] for i, p in zip(chosen, pick, strict=True)
        ]
        images = _prepared(self.loaded, [_open(self.pictures, i) for i in chosen[share]])
        return Batch(images, texts, torch.arange(len(chosen))[share])


@dataclass
class Scenes:
    """Endlessly many scenes of emoji drawings with what a `kind` of model is to say of them."""

    kind: type[Reader]

    def __len__(self) -> int:
        """Return how many are called a pass."""
        return SCENES

    def batch(self, indices: Tensor, rng: torch.Generator, share: slice = ALL) -> Batch:
        """Return new scenes; see `Pairs`. Here each question belongs to one scene alone."""
        seed = TEST_SEEDS + int(torch.randint(2**31, (1,), generator=rng))
        samples = self._samples(len(indices), seed)[share]
        return Batch(
            torch.empty(0),
            [text for _, text, _ in samples],
            torch.arange(len(samples)),
            [answer for *_, answer in samples],
            [[Image.fromarray(image) for image in images] for images, *_ in samples],
        )

    def _samples(self, count: int, seed: int) -> list[tuple[Sequence[Any], str, str]]:
        """Images, what is asked or stated, and the right answer, `count` times."""
        if issubclass(self.kind, PairClassifier):
            pairs = statements.pairs(count, seed)
            return [(pair.images, pair.text, str(pair.true)) for pair in pairs]
        if issubclass(self.kind, Captioner):
            return [((image,), "", text) for image, text in scenes.described(count, seed)]
        asked = scenes.scenes(count, seed)
        return [((scene.image,), scene.question, scene.answer) for scene in asked]


@dataclass
class Clutter(Scenes):
    """Endlessly many questions about cluttered scenes of 224 pixels, by four design houses.

    `drawn` holds the drawings of each name; see `drawn_by`.
    """

    drawn: Mapping[str, Sequence[ByteArray]]

    def _samples(self, count: int, seed: int) -> list[tuple[Sequence[Any], str, str]]:
        """Images, what is asked, and the right answer, `count` times; kinds in turn."""
        samples: list[tuple[Sequence[Any], str, str]] = []
        for i in range(count):
            placed = clutter.arrange(np.random.default_rng([seed, i]))
            image = clutter.draw(placed, self.drawn, np.random.default_rng([seed, i, 1]))
            kind = scenes.KINDS[i % len(scenes.KINDS)]
            rng = np.random.default_rng([seed, i, 2])
            question, answer = scenes.ask(kind, placed, rng, [*self.drawn])
            samples.append(((image,), question, answer))
        return samples


def drawn_by(houses: Sequence[str], data_dir: Path | None) -> dict[str, list[ByteArray]]:
    """Return, for each name that is asked about in clutter, its drawings (96,96,3) by houses."""
    drawn = [house_images(house, data_dir, DRAWN) for house in houses]
    return {name: [house[label] for house in drawn] for label, name in clutter.NAMES.items()}


@dataclass
class Labelled:
    """Labelled pictures, prepared as `loaded` says, mirrored half the time."""

    loaded: Loaded
    pictures: Pictures
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def batch(self, indices: Tensor, rng: torch.Generator, share: slice = ALL) -> Batch:
        """Return pictures, some mirrored; see `Pairs`."""
        mirror = (torch.rand(len(indices), 1, 1, 1, generator=rng) < 0.5)[share]
        indices = indices[share]
        images = _prepared(self.loaded, [_open(self.pictures, i) for i in indices.tolist()])
        return Batch(torch.where(mirror, images.flip(-1), images), [], self.labels[indices])


def _open(pictures: Pictures, index: int) -> Any:
    try:
        return pictures.open(index)
    except BROKEN as error:
        raise BenchError(
            f"training image {pictures.name(index)} does not decode ({error}): mend or drop it"
        ) from error


def _prepared(loaded: Loaded, pictures: list[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(np.asarray(loaded.pixels(p))) for p in pictures])


def check_name(name: str) -> None:
    """Raise BenchError where `name` is no training data of any model; see `load`."""
    scheme, _, where = name.partition(":")
    if scheme not in (*SHIPPED, *GIVEN) or (scheme in GIVEN and not where):
        known = ", ".join([*filter(None, SHIPPED), *GIVEN.values()])
        raise BenchError(f"--data: unknown training data '{name}': {known}")


def load(name: str, loaded: Loaded, cache: Path | None) -> Pairs:
    """Return the training data called `name`; by default what fits the kind of model.

    An image encoder that knows its texts takes "drawings", two towers "emoji" or
    "karpathy:JSON[:IMAGES]" (split train), classifiers "fashion" or "imagefolder:PATH", those that
    answer, caption or judge "scenes", multimodal language models also "clutter".

    Raises:
        BenchError: another name, or data that are missing or unusable.
    """
    scheme, _, where = name.partition(":")
    if isinstance(loaded, Classifier):
        if scheme in ("", "fashion"):
            images, labels = fashion("train", cache)
            if loaded.classes <= labels.max():
                raise BenchError(
                    f"{loaded.name} tells {loaded.classes} classes apart, and the fashion images "
                    f"are of {labels.max() + 1}: give other --data"
                )
            return Labelled(loaded, Arrays(images, "fashion image"), torch.from_numpy(labels))
        if scheme == "imagefolder" and where:
            task = classification.image_folder(where)
            return Labelled(loaded, task.prepared.pictures, torch.tensor(task.labels))
        raise BenchError(f"unknown training data '{scheme}': fashion, or imagefolder:PATH")
    if isinstance(loaded, Reader):
        if scheme in ("", "scenes"):
            return Scenes(type(loaded))
        if scheme == "clutter" and isinstance(loaded, Multimodal):
            return Clutter(type(loaded), drawn_by(LARGE_HOUSES, cache))
        raise BenchError(
            f"unknown training data '{name}': a model that reads takes scenes, a multimodal "
            "language model also clutter"
        )
    if isinstance(loaded, ImageTower):
        if scheme in ("", "drawings"):
            return LargeDrawings(loaded, cache)
        raise BenchError(f"{loaded.name} knows no other texts than its own: --data drawings")
    if scheme in ("", "emoji"):
        return Emoji(loaded, emoji("train", cache))
    if scheme == "karpathy" and where:
        return Files(loaded, retrieval.karpathy(where, split="train"))
    raise BenchError(f"unknown training data '{name}': emoji, or karpathy:JSON[:IMAGES]")
