"""A model ready to run: one class a kind, with what tasks, measurements and training ask of it.

    bench.models.load("embedded:clip-emoji").encode_texts(...)    # a TwoTower

A task asks for the kind that it needs with `isinstance`. Each class is abstract where the way of
asking depends on the model: `bench.models.multimodal`, `blip` and `vilt` fill that in.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.core.errors import BenchError, Unsupported

if TYPE_CHECKING:
    Images = Sequence[Sequence[Any]]  # PIL images of each sample


@dataclass(frozen=True)
class Loaded(ABC):
    """What every kind of model has.

    Attributes:
        name: as the user typed it.
        model: an `nn.Module` in eval mode, on its device, in its dtype.
        image_size: (height, width) in pixels; `channels` of the input image.
        transform: PIL image -> (channels, height, width) float32; None when nobody knows it.
        image_argument: what `model()` calls its images.
        provenance: `weights` ("random", "trained here", "path", "hub:ID"), `sha256`, `card`.
        kind: the class in one word, for messages.
        covers: see `scope`; `{tokens}` stands for the length of a text.
        text_length: tokens of the text in `example_inputs`, for models that read.
    """

    name: str
    model: Any
    image_size: tuple[int, int]
    channels: int = 3
    transform: Callable[[Any], Tensor] | None = None
    image_argument: str = "pixel_values"
    provenance: dict[str, Any] = field(default_factory=dict)

    kind: ClassVar[str] = "model"
    covers: ClassVar[str] = "one image through the whole model"
    text_length = 0

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that no accuracy can come from them."""
        return bool(self.provenance.get("weights") == "random")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return _like(self.model).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return _like(self.model).dtype

    @property
    def scope(self) -> str:
        """What one forward pass of `example_inputs(1)` covers, in words."""
        return self.covers.format(tokens=self.text_length)

    def pixels(self, picture: Any) -> Tensor:
        """Return a PIL image as the model takes it, (C,H,W) float32.

        Raises:
            BenchError: nobody knows how, or it comes out in another shape than the model takes.
        """
        if self.transform is None:
            raise BenchError(
                f"nothing says how images are prepared for {self.name}: "
                "put its preprocessor_config.json beside its weights"
            )
        pixels = self.transform(picture.convert("L" if self.channels == 1 else "RGB"))
        takes = (self.channels, *self.image_size)
        if pixels.shape != takes:
            raise BenchError(
                f"{self.name} takes images of (channels, height, width) {takes} and they are "
                f"prepared as {tuple(pixels.shape)}: mend its preprocessor_config.json"
            )
        return pixels

    def placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return inputs on the model's device, in its dtype where not integers."""
        return placed(self.model, inputs)

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Any]:
        """Return arguments of `model()`: images of noise (B,C,H,W), and random words (B,L)."""
        return self._noise(batch, torch.Generator().manual_seed(seed))

    def _noise(self, batch: int, generator: torch.Generator) -> dict[str, Any]:
        images = torch.randn(batch, self.channels, *self.image_size, generator=generator)
        return {self.image_argument: images.to(self.device, self.dtype)}

    @contextlib.contextmanager
    def valueless_inputs(
        self, words: int | None = None, frames: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Give one example on the meta device, where the model is told what it reads from values.

        `words` are the tokens of a prompt beside its image's, and `frames` those of a video in
        place of an image, for multimodal models alone.
        """
        yield self.example_inputs(1)


def _like(model: nn.Module) -> Tensor:
    return next(model.parameters())


def placed(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs on a model's device, in its dtype where not integers."""
    like = _like(model)
    return {
        key: value.to(like.device, like.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
    }


# --- models of images ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoder(Loaded):
    """A model without a head: it can be counted and timed, and no task scores it."""

    kind: ClassVar[str] = "encoder"


@dataclass(frozen=True)
class Classifier(Loaded):
    """A model of one image that has an output for each of its `classes`."""

    classes: int = 0

    kind: ClassVar[str] = "classifier"

    def logits(self, pixels: Tensor) -> Tensor:
        """Return (B,classes) float32 for images (B,C,H,W)."""
        output = self.model(**{self.image_argument: pixels})
        logits: Tensor = getattr(output, "logits", output).float()
        return logits


@dataclass(frozen=True)
class TwoTower(Loaded):
    """A model that encodes images and texts apart, into one space.

    Attributes:
        tokenizer: list of texts -> mapping of (B,L) tensors, or None.
        text_length: tokens that a text may have.
        vocabulary: token ids run below this.
        end_token: the id that ends a text.
    """

    tokenizer: Callable[[list[str]], Mapping[str, Tensor]] | None = None
    text_length: int = 0
    vocabulary: int = 0
    end_token: int | None = None

    kind: ClassVar[str] = "two-tower"
    covers: ClassVar[str] = "one image and one text of {tokens} tokens, both towers"

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Any]:
        """Return images of noise (B,C,H,W) and texts (B,L) of full length."""
        generator = torch.Generator().manual_seed(seed)
        inputs = self._noise(batch, generator)
        shape = (batch, self.text_length)
        ids = torch.randint(1, max(self.vocabulary - 2, 2), shape, generator=generator)
        # CLIP reads its text at the first end token, or at the largest id where it has no such
        # token: the last position, so that the text is as long as it can be.
        end = self.vocabulary - 1 if self.end_token in (None, 2) else self.end_token
        ids[ids == end] = 1
        ids[:, -1] = end
        return {**inputs, "input_ids": ids.to(self.device)}

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return features (B,D) float32 of images (B,C,H,W), of length 1."""
        return projected(self.model.get_image_features(**{self.image_argument: pixels}))

    def encode_texts(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features (B,D) float32 of the tokenizer's mapping, of length 1."""
        return projected(self.model.get_text_features(**inputs))


def projected(output: Any) -> Tensor:
    """Return projected features of length 1, however this version of transformers returns them."""
    features: Tensor = getattr(output, "pooler_output", output)
    return normalize(features.float(), dim=-1)


@dataclass(frozen=True)
class Matcher(Loaded):
    """A model that compares images and texts by their features, and by one look at both.

    `tokenizer` turns texts into a mapping of (B,L) tensors; None when nobody knows how.
    """

    tokenizer: Callable[[list[str]], Mapping[str, Tensor]] | None = None

    kind: ClassVar[str] = "matcher"

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B,D) of images (B,C,H,W), of length 1, and tokens (B,N,C) for `match`.

        Tokens have one more channel where a reduction left sizes that count.
        """

    @abstractmethod
    def encode_texts(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features (B,D) of the tokenizer's mapping, of length 1."""

    @abstractmethod
    def match(self, tokens: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return (B,) logits of "a match" of images' tokens and the tokenizer's mapping."""


# --- models of images and words ------------------------------------------------------------------


@dataclass(frozen=True)
class Reader(Loaded):
    """A model that reads words beside images.

    `processor` is the one of transformers that was saved beside the model. Without its files it is
    None, and what the model costs can be measured while nothing can be asked of it.
    """

    processor: Any = None

    def require_processor(self) -> Any:
        """Return the processor; raises BenchError when there is none."""
        if self.processor is None:
            raise BenchError(
                f"nothing says how questions are put to {self.name}, as it has no processor: put "
                "its files beside its weights (preprocessor_config.json, tokenizer.json)"
            )
        return self.processor

    @abstractmethod
    def teach(
        self, images: Images, texts: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return arguments of `model()` with `labels`, so that it gives the loss of the answers."""


@dataclass(frozen=True)
class Writer(Reader):
    """A model that answers with text."""

    @abstractmethod
    def answer(self, images: Images, texts: Sequence[str], new_tokens: int) -> list[str]:
        """Return the greedy answer to each question or prompt, of at most `new_tokens` tokens."""


@dataclass(frozen=True)
class Multimodal(Writer):
    """A language model that sees."""

    kind: ClassVar[str] = "multimodal"

    @property
    def takes_video(self) -> bool:
        """Whether it can be shown frames as a video."""
        return False

    @abstractmethod
    def answer(
        self, images: Images, texts: Sequence[str], new_tokens: int, video: bool = False
    ) -> list[str]:
        """As `Writer`; with `video` the images of each question are the frames of one video."""

    def require_video(self) -> None:
        """Raise Unsupported when the model takes no videos."""
        if not self.takes_video:
            raise Unsupported(f"{self.name} takes no videos here: its family is asked about images")


@dataclass(frozen=True)
class Answerer(Writer):
    """A model made for answering questions about an image."""

    kind: ClassVar[str] = "answerer"


@dataclass(frozen=True)
class Captioner(Writer):
    """A model that describes an image, from where a prompt begins."""

    kind: ClassVar[str] = "captioner"


@dataclass(frozen=True)
class PairClassifier(Reader):
    """A model that judges a text about two images."""

    kind: ClassVar[str] = "pair-classifier"

    @abstractmethod
    def judge(self, images: Images, texts: Sequence[str]) -> Tensor:
        """Return logits (B,classes) of each text about its images."""
