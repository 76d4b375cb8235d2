"""Pictures of a task, in memory or in files, and the batches that a model takes."""

from __future__ import annotations

import contextlib
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bench.core.errors import BenchError, shown

if TYPE_CHECKING:
    from bench.models.loaded import Loaded, Writer

CACHE_BYTES = 1 << 30  # prepared images are kept between cells up to this size
BROKEN = (OSError, ValueError)  # what pictures raise that do not decode
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no EPS, which runs a program
# The longer side over the shorter: some models take no more, and where the shorter is made 224
# pixels the longer could fill the memory.
NARROWEST = 200
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
NO_RANGE = ("I", "F")  # modes whose black and white nothing tells


class Undecoded(ValueError):
    """A picture that cannot be had, and why."""


def decoded(source: Path | IO[bytes]) -> Image.Image:
    """Return a picture as RGB.

    The first frame of several; rows as they are stored, whatever EXIF says of turning; colours
    without their alpha: as published evaluations open pictures. Of 16 bits a grey pixel keeps 8.

    Args:
        source: a regular file, or an open one.

    Raises:
        Undecoded: not there, no regular file, not one of `FORMATS`, truncated, larger than Pillow
            takes for safe, far longer than wide, or of pixels without a known range.
    """
    with opening(source) as image:
        return rgb(image)


@contextlib.contextmanager
def opening(source: Path | IO[bytes]) -> Iterator[Image.Image]:
    """Give a picture, or an animation, as it is stored; raises as `decoded` does, inside too."""
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
            raise Undecoded("no regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                yield image
    except UnidentifiedImageError:
        raise Undecoded(f"no image of {', '.join(FORMATS)}") from None
    except MemoryError:  # of the machine, not of the picture
        raise
    except Exception as error:  # decoders raise whatever they stumble over
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Undecoded(reason.splitlines()[0]) from error


def rgb(image: Image.Image) -> Image.Image:
    """Return an open picture's frame as RGB; raises Undecoded as `decoded` does."""
    if max(image.size) > NARROWEST * min(image.size):
        raise Undecoded("sides of {} and {} pixels".format(*image.size))
    if image.mode in NO_RANGE:
        raise Undecoded(f"pixels of mode {image.mode}, whose range is unknown")
    image.load()
    if image.mode in GREY_16:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


class Pictures(Protocol):
    """Images by position, each with a name that a person can find it by."""

    def __len__(self) -> int:
        """Return how many there are."""

    def name(self, index: int) -> str:
        """Return the name of one image."""

    def open(self, index: int) -> Image.Image:
        """Return one image as RGB; raises OSError or ValueError when it does not decode."""


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
        return Image.fromarray(np.asarray(self.pixels[index])).convert("RGB")


@dataclass(frozen=True)
class Files:
    """Pictures in files."""

    paths: Sequence[Path]
    root: Path

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the path below the root, what is no Unicode in it escaped."""
        path = self.paths[index]
        name = str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)
        return name.encode(errors="backslashreplace").decode()

    def open(self, index: int) -> Image.Image:
        """Return one image."""
        return decoded(self.paths[index])


def check_some(pictures: Pictures, form: str, what: str = "images") -> None:
    """Raise BenchError where not one of the pictures can be opened; single ones count as wrong.

    Args:
        pictures: of a data set.
        form: of the task's names, for the message.
        what: they are.
    """
    first = ""
    for i in range(len(pictures)):
        try:
            pictures.open(i)
            return
        except BROKEN as error:
            first = first or f"{shown(pictures.name(i))} ({shown(error)})"
    raise BenchError(f"none of {len(pictures)} {what} can be opened, such as {first}: {form}")


class Prepared:
    """Pictures as the batches a model takes, kept between cells while they are small."""

    def __init__(self, pictures: Pictures) -> None:
        """Wrap pictures; nothing is opened yet."""
        self.pictures = pictures
        self._kept: dict[tuple[int, ...], tuple[Tensor, list[bool]]] = {}
        self._of, self._bytes = "", 0

    def batches(
        self, loaded: Loaded, index: Sequence[int], size: int
    ) -> Iterator[tuple[Tensor, list[bool]]]:
        """Yield (B,C,H,W) float32 batches and which of their images decoded (the others are 0)."""
        if self._of != loaded.name:
            self._kept, self._of, self._bytes = {}, loaded.name, 0
        for start in range(0, len(index), size):
            rows = tuple(index[start : start + size])
            if rows in self._kept:
                yield self._kept[rows]
                continue
            batch = self._prepare(loaded, rows)
            taken = batch[0].numel() * 4
            if self._bytes + taken <= CACHE_BYTES:
                self._kept[rows], self._bytes = batch, self._bytes + taken
            yield batch

    def _prepare(self, loaded: Loaded, index: Sequence[int]) -> tuple[Tensor, list[bool]]:
        images = torch.zeros(len(index), loaded.channels, *loaded.image_size)
        ok = []
        for row, i in enumerate(index):
            try:
                picture = self.pictures.open(i)
            except BROKEN:
                ok.append(False)
                continue
            images[row] = loaded.pixels(picture)
            ok.append(True)
        return images, ok


def opened(pictures: Pictures, index: int, failed: list[str]) -> Image.Image | None:
    """Return a picture as RGB; None where it does not decode, its name then added to `failed`."""
    try:
        return pictures.open(index)
    except BROKEN:
        failed.append(pictures.name(index))
        return None


def undecoded(pictures: Pictures, index: Sequence[int], decoded: Sequence[bool]) -> list[str]:
    """Return the names of the pictures that did not decode."""
    return [pictures.name(i) for i, ok in zip(index, decoded, strict=True) if not ok]


def answered(
    loaded: Writer, images: Sequence[Image.Image | None], texts: Sequence[str], longest: int
) -> list[str | None]:
    """Return a model's answer to each picture and text, None where the picture does not decode.

    Args:
        loaded: a model that answers.
        images: RGB, see `opened`.
        texts: what is asked of each.
        longest: tokens of an answer, at most.
    """
    shown = [[image] for image in images if image is not None]
    asked = [text for text, image in zip(texts, images, strict=True) if image is not None]
    answers = iter(loaded.answer(shown, asked, longest) if shown else [])
    return [None if image is None else next(answers) for image in images]
