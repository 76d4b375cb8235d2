"""Images with texts or labels to fine-tune on: what the embedded models saw, or a user's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.models.loaded import Loaded

if TYPE_CHECKING:
    from bench.tasks.pictures import Pictures
    from bench.tasks.retrieval import Retrieval
    from bench.training.drawings import Drawings


SCENES = 8192
TEST_SEEDS = 1000  # seeds below are left to evaluations


@dataclass(frozen=True)
class Batch:
    """Images (B,C,H,W) as the model takes them, and what belongs to them.

    `own` (B,) is the row of each image's text in `texts`, or its label where there are no texts.
    Questions come with their `answers`, and with the `pictures` of each in place of images, as the
    model's processor wants them.
    """

    images: Tensor
    texts: list[str]
    own: Tensor
    answers: Sequence[str] = ()
    pictures: Sequence[Sequence[Any]] = ()


class Pairs(Protocol):
    """Training data."""

    def __len__(self) -> int:
        """Return the number of images."""

    def batch(self, indices: Tensor, rng: torch.Generator) -> Batch:
        """Return the images at `indices` (B,) with their texts; all chance comes from `rng`."""


class Emoji:
    """Drawings of five design houses, distorted, with some of their captions' keywords dropped.

    A batch has `EXTRA_TEXTS_FULL` captions more than its images: negatives that cost little.
    """

    def __init__(self, loaded: Loaded, drawings: Drawings) -> None:
        """Keep the drawings; `loaded` says how images are prepared."""
        self.loaded, self.concepts = loaded, drawings.concepts
        self.images = torch.from_numpy(drawings.images)
        self.concept = torch.from_numpy(drawings.concept)

    def __len__(self) -> int:
        """Return the number of drawings."""
        return len(self.images)

    def batch(self, indices: Tensor, rng: torch.Generator) -> Batch:
        """Return distorted drawings; see `Pairs`."""
        from PIL import Image

        from bench.training.augment import distort
        from bench.training.contrastive import EXTRA_TEXTS_FULL, choose_texts
        from bench.training.text import drop_keywords

        concepts = self.concept[indices]
        shown, own = choose_texts(concepts, len(self.concepts), EXTRA_TEXTS_FULL, rng)
        texts = [drop_keywords(self.concepts[i].text, rng) for i in shown.tolist()]
        colours = distort(self.images[indices], self.images.shape[1], rng)
        pixels = (colours * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return Batch(_prepared(self.loaded, [Image.fromarray(p) for p in pixels]), texts, own)


class Files:
    """Pictures in files, each with one of its captions."""

    def __init__(self, loaded: Loaded, task: Retrieval) -> None:
        """Keep the pictures and captions of a retrieval task."""
        self.loaded, self.pictures, self.texts = loaded, task.prepared.pictures, task.texts
        self.usable = [i for i, texts in enumerate(task.texts) if texts]
        if not self.usable:
            raise BenchError(f"no picture of {task.name} has a caption to train on")

    def __len__(self) -> int:
        """Return the number of pictures with a caption."""
        return len(self.usable)

    def batch(self, indices: Tensor, rng: torch.Generator) -> Batch:
        """Return pictures as they are; see `Pairs`."""
        chosen = [self.usable[i] for i in indices.tolist()]
        pick = torch.rand(len(chosen), generator=rng).tolist()
        texts = [
            self.texts[i][int(p * len(self.texts[i]))] for i, p in zip(chosen, pick, strict=True)
        ]
        images = _prepared(self.loaded, [_open(self.pictures, i) for i in chosen])
        return Batch(images, texts, torch.arange(len(chosen)))


class Scenes:
    """Endlessly many scenes of emoji drawings with what a kind of model is to say of them."""

    def __init__(self, kind: str) -> None:
        """Note whether it answers, captions, or judges two of them at a time."""
        self.kind = kind

    def __len__(self) -> int:
        """Return how many are called a pass."""
        return SCENES

    def batch(self, indices: Tensor, rng: torch.Generator) -> Batch:
        """Return new scenes, as many as there are indices; see `Pairs`."""
        from PIL import Image

        seed = TEST_SEEDS + int(torch.randint(2**31, (1,), generator=rng))
        said = self._said(len(indices), seed)
        return Batch(
            torch.empty(0),
            [text for _, text, _ in said],
            torch.arange(len(said)),
            [answer for *_, answer in said],
            [[Image.fromarray(image) for image in images] for images, *_ in said],
        )

    def _said(self, count: int, seed: int) -> list[tuple[Sequence[Any], str, str]]:
        """Images, what is asked or stated, and the right answer, a number of times."""
        from bench.tasks import scenes, statements

        if self.kind == "pair-classifier":
            found = statements.pairs(count, seed)
            return [(pair.images, pair.text, str(pair.true)) for pair in found]
        if self.kind == "captioner":
            composed = scenes.described(count, seed)
            return [((image,), "", text) for image, text in composed]
        asked = scenes.scenes(count, seed)
        return [((scene.image,), scene.question, scene.answer) for scene in asked]


class Labelled:
    """Labelled pictures, mirrored half the time."""

    def __init__(self, loaded: Loaded, pictures: Pictures, labels: Sequence[int]) -> None:
        """Keep the pictures; `loaded` says how images are prepared."""
        self.loaded, self.pictures, self.labels = loaded, pictures, torch.as_tensor(labels)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def batch(self, indices: Tensor, rng: torch.Generator) -> Batch:
        """Return pictures, some mirrored; see `Pairs`."""
        images = _prepared(self.loaded, [_open(self.pictures, i) for i in indices.tolist()])
        mirror = torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5
        return Batch(torch.where(mirror, images.flip(-1), images), [], self.labels[indices])


def _open(pictures: Pictures, index: int) -> Any:
    try:
        return pictures.open(index)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three
        raise BenchError(
            f"training image {pictures.name(index)} does not decode ({error}): mend or drop it"
        ) from error


def _prepared(loaded: Loaded, pictures: list[Any]) -> Tensor:
    if loaded.transform is None:
        raise BenchError(
            f"nothing says how images are prepared for {loaded.name}: "
            "put its preprocessor_config.json beside its weights"
        )
    return torch.stack([torch.as_tensor(np.asarray(loaded.transform(p))) for p in pictures])


def load(name: str, loaded: Loaded, cache: Path | None) -> Pairs:
    """Return the training data called `name`; by default what fits the kind of model.

    Two towers take "emoji" or "karpathy:JSON[:IMAGES]" (split train), classifiers "fashion" or
    "imagefolder:PATH", those that answer, caption or judge "scenes".

    Raises:
        BenchError: another name, or data that are missing or unusable.
    """
    scheme, _, where = name.partition(":")
    if loaded.kind == "classifier":
        return _labelled(scheme or "fashion", where, loaded, cache)
    if loaded.kind in ("multimodal", "answerer", "captioner", "pair-classifier"):
        if scheme in ("", "scenes"):
            return Scenes(loaded.kind)
        raise BenchError(f"unknown training data '{name}': a model that reads takes scenes")
    if scheme in ("", "emoji"):
        from bench.training import drawings

        return Emoji(loaded, drawings.emoji("train", cache))
    if scheme == "karpathy" and where:
        from bench.tasks import retrieval

        return Files(loaded, retrieval.karpathy(where, split="train"))
    raise BenchError(f"unknown training data '{name}': emoji, or karpathy:JSON[:IMAGES]")


def _labelled(scheme: str, where: str, loaded: Loaded, cache: Path | None) -> Labelled:
    from bench.tasks.pictures import Arrays

    if scheme == "fashion":
        from bench.training import data

        images, labels = data.fashion("train", cache)
        return Labelled(loaded, Arrays(images, "fashion image"), labels.tolist())
    if scheme == "imagefolder" and where:
        from bench.tasks import classification

        task = classification.image_folder(where)
        return Labelled(loaded, task.prepared.pictures, task.labels)
    raise BenchError(f"unknown training data '{scheme}': fashion, or imagefolder:PATH")
