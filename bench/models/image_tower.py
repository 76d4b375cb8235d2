"""A two-tower model whose text tower has done its work: an image encoder and a table of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, shown
from bench.models.loaded import TwoTower, projected


@dataclass(frozen=True)
class ImageTower(TwoTower):
    """An image encoder whose output lies in one space with texts that were encoded beforehand.

    Attributes:
        rows: of each text it knows, the row of its features in the model's `text_features` (T,D).
    """

    rows: Mapping[str, int] = field(default_factory=dict)

    covers: ClassVar[str] = "one image through the image encoder"

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Any]:
        """Return images of noise (B,C,H,W)."""
        return self._noise(batch, torch.Generator().manual_seed(seed))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return features (B,D) float32 of images (B,C,H,W), of length 1."""
        return projected(self.model(**{self.image_argument: pixels}))

    def encode_texts(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features (B,D) float32 of the rows (B,) that `look_up` gave, of length 1."""
        return projected(self.model.text_features[inputs["rows"]])


def know_texts(encoder: nn.Module, features: Tensor) -> None:
    """Give an image encoder the features (T,D) of texts, which go where it goes."""
    encoder.register_buffer("text_features", features, persistent=False)


def look_up(rows: Mapping[str, int], name: str) -> Callable[[list[str]], dict[str, Tensor]]:
    """Return the tokenizer of an `ImageTower`: texts -> {"rows": (B,)}.

    It raises BenchError for a text that was not encoded beforehand.
    """

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        unknown = next((text for text in texts if text not in rows), None)
        if unknown is not None:
            raise BenchError(
                f"{name} has no text encoder and knows {len(rows)} texts by heart, not "
                f"'{shown(unknown)}': use one of its own tasks"
            )
        return {"rows": torch.tensor([rows[text] for text in texts])}

    return tokenize
