"""Pictures of a task, in memory or in files, and the batches that a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from bench.models.loaded import Loaded, Writer

CACHE_BYTES = 1 << 30  # prepared images are kept between cells up to this size
BROKEN = (OSError, ValueError, SyntaxError)  # what Pillow raises on files that do not decode


class Pictures(Protocol):
    """Images by position, each with a name that a person can find it by."""

    def __len__(self) -> int:
        """Return how many there are."""

    def name(self, index: int) -> str:
        """Return the name of one image."""

    def open(self, index: int) -> Image.Image:
        """Return one image, decoded; raises OSError or ValueError when it cannot be."""


@dataclass(frozen=True)
class Arrays:
    """Pictures in memory: (N,H,W) or (N,H,W,3) uint8."""

    pixels: Any
    label: str = "image"

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Return the name of one image."""
        return f"{self.label} {index}"

    def open(self, index: int) -> Image.Image:
        """Return one image."""
        return Image.fromarray(np.asarray(self.pixels[index]))


@dataclass(frozen=True)
class Files:
    """Pictures in files."""

    paths: Sequence[Path]
    root: Path

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the path below the root."""
        path = self.paths[index]
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def open(self, index: int) -> Image.Image:
        """Return one image, decoded."""
        with Image.open(self.paths[index]) as image:
            image.load()
            return image.copy()


class Prepared:
    """Pictures as the batches a model takes, kept between cells while they are small."""

    def __init__(self, pictures: Pictures) -> None:
        """Wrap pictures; nothing is opened yet."""
        self.pictures = pictures
        self._kept: tuple[Any, list[tuple[Tensor, list[bool]]]] | None = None

    def batches(
        self, loaded: Loaded, index: Sequence[int], size: int
    ) -> Iterator[tuple[Tensor, list[bool]]]:
        """Yield (B,C,H,W) float32 batches and which of their images decoded (the others are 0)."""
        key = (loaded.name, tuple(index), size)
        if self._kept is not None and self._kept[0] == key:
            yield from self._kept[1]
            return
        batches: list[tuple[Tensor, list[bool]]] = []
        held = 0
        for start in range(0, len(index), size):
            batch = self._prepare(loaded, index[start : start + size])
            held += batch[0].numel() * 4
            batches = [*batches, batch] if held <= CACHE_BYTES else []
            yield batch
        if held <= CACHE_BYTES:
            self._kept = (key, batches)

    def _prepare(self, loaded: Loaded, index: Sequence[int]) -> tuple[Tensor, list[bool]]:
        images = torch.zeros(len(index), loaded.channels, *loaded.image_size)
        decoded = []
        for row, i in enumerate(index):
            try:
                picture = self.pictures.open(i)
            except BROKEN:
                decoded.append(False)
                continue
            images[row] = loaded.pixels(picture)
            decoded.append(True)
        return images, decoded


def opened(pictures: Pictures, index: int, failed: list[str]) -> Image.Image | None:
    """Return a picture as RGB; None where it does not decode, its name then added to `failed`."""
    try:
        return pictures.open(index).convert("RGB")
    except BROKEN:
        failed.append(pictures.name(index))
        return None


def undecoded(pictures: Pictures, index: Sequence[int], decoded: Sequence[bool]) -> list[str]:
    """Return the names of the pictures that did not decode."""
    return [pictures.name(i) for i, ok in zip(index, decoded, strict=True) if not ok]


def answered(
    loaded: Writer, images: Sequence[Image.Image | None], texts: Sequence[str], longest: int
) -> list[str]:
    """Return a model's answer to each picture and text, "" where the picture does not decode.

    Args:
        loaded: a model that answers.
        images: RGB, see `opened`.
        texts: what is asked of each.
        longest: tokens of an answer, at most.
    """
    shown = [[image] for image in images if image is not None]
    asked = [text for text, image in zip(texts, images, strict=True) if image is not None]
    answers = iter(loaded.answer(shown, asked, longest) if shown else [])
    return ["" if image is None else next(answers) for image in images]
