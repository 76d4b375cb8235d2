"""Stand-ins for models: they answer, judge and match as a test tells them to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.models.loaded import Answerer, Captioner, Multimodal, PairClassifier, TwoTower

KINDS: tuple[type[Any], ...] = (Answerer, Captioner, Multimodal, PairClassifier, TwoTower)
Answer = Callable[[list[Any], str], str]


class Answering:
    """A model of a kind that answers."""

    device, dtype = torch.device("cpu"), torch.float32
    __setattr__ = object.__setattr__  # models are frozen

    takes_video = False

    def __new__(cls, kind: str, say: Answer) -> Any:
        base = next(base for base in KINDS if base.kind == kind)
        return object.__new__(type("Fake", (Answering, base), {}))

    def __init__(self, kind: str, say: Answer) -> None:
        base = next(base for base in KINDS if base.kind == kind)
        base.__init__(self, "fake", self, (1, 1))
        self.seen, self.say = [], say

    def teach(self, *_: Any) -> Any:
        raise NotImplementedError

    judge = teach

    def answer(
        self, images: list[list[Any]], texts: list[str], max_new_tokens: int, video: bool = False
    ) -> list[str]:
        self.seen += list(zip([len(own) for own in images], texts, strict=True))
        return [self.say(own, text) for own, text in zip(images, texts, strict=True)]


def picture(path: Path, shade: int = 0) -> Path:
    """An 8 by 8 picture of one shade of grey, which a fake model can tell it by."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(path)
    return path


def shade(image: Any) -> int:
    """The shade of a picture, roughly: JPEG loses a little."""
    return int(np.asarray(image.convert("L"))[0, 0])
