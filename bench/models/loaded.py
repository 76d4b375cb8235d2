"""A model ready to run, with what is needed to feed it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with what is needed to feed it.

    Attributes:
        name: as the user typed it.
        model: in eval mode, on its device, in its dtype.
        kind: "classifier", "two-tower" (image and text), "encoder", "multimodal" (a language
            model that sees), "answerer" (of questions), "captioner", "matcher" (of images and
            texts, by features and by one look at both), "pair-classifier" (two images, one text).
        image_size: (height, width) in pixels; `channels` of the input image.
        transform: PIL image -> (channels, height, width) float32; None when nobody knows it.
        tokenizer: list of texts -> mapping of (B,L) tensors, or None.
        text_length: tokens in a text, for two-tower models.
        vocabulary: token ids run below this, for models that read.
        prepare: for multimodal models: images of each sample and its question -> the arguments of
            `generate()`, padded on the left; `decode`: new token ids (B,T) -> texts.
        teach: images of each sample, questions, right answers -> the arguments of `model()` with
            `labels`, so that it gives back the loss of the answers.
        example: batch size -> the arguments of a prompt of noise, where the usual ones won't do.
        covers: what a forward pass of it covers, in words.
        answer: images of each sample, questions or prompts, most new tokens -> greedy answers.
        judge: images of each sample, statements -> logits (B,classes).
        encode_images: for matchers: pixels (B,3,H,W) -> features (B,D) of length 1, and tokens
            (B,N,C) for `match`, with one more channel where a reduction left sizes that count.
        encode_texts: for matchers: the tokenizer's mapping -> features (B,D) of length 1.
        match: for matchers: tokens and the tokenizer's mapping -> (B,) logits of "a match".
        provenance: `weights` ("random", "trained here", "path", "hub:ID"), `sha256`, `card`.
    """

    name: str
    model: nn.Module
    kind: str
    image_size: tuple[int, int]
    channels: int = 3
    transform: Callable[[Any], Tensor] | None = None
    tokenizer: Callable[[list[str]], dict[str, Tensor]] | None = None
    text_length: int = 0
    vocabulary: int = 0
    prepare: Callable[[list[list[Any]], list[str]], dict[str, Tensor]] | None = None
    teach: Callable[[list[list[Any]], list[str], list[str]], dict[str, Tensor]] | None = None
    decode: Callable[[Tensor], list[str]] | None = None
    example: Callable[[int], dict[str, Any]] | None = None
    covers: str = ""
    answer: Callable[[list[list[Any]], list[str], int], list[str]] | None = None
    judge: Callable[[list[list[Any]], list[str]], Tensor] | None = None
    encode_images: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    encode_texts: Callable[[Mapping[str, Tensor]], Tensor] | None = None
    match: Callable[[Tensor, Mapping[str, Tensor]], Tensor] | None = None
    end_token: int | None = None
    image_argument: str = "pixel_values"
    classes: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that no accuracy can come from them."""
        return bool(self.provenance.get("weights") == "random")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next(self.model.parameters()).dtype

    @property
    def scope(self) -> str:
        """What one forward pass of `example_inputs(1)` covers, in words."""
        if self.covers:
            return self.covers
        if self.kind == "two-tower":
            return f"one image and one text of {self.text_length} tokens, both towers"
        if self.kind == "multimodal":
            return f"one image and {self.text_length} words, until the first token of the answer"
        return "one image through the whole model"

    def placed(
        self, inputs: Mapping[str, Tensor], device: str | torch.device | None = None
    ) -> dict[str, Tensor]:
        """Return inputs on the model's device (or another), in its dtype where not integers."""
        return placed(self.model, inputs, device)

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Any]:
        """Return arguments of `model()`: noise images (B,C,H,W), full-length texts (B,L)."""
        import torch

        if self.example is not None:
            return self.placed(self.example(batch))
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(batch, self.channels, *self.image_size, generator=generator)
        inputs: dict[str, Any] = {self.image_argument: images.to(self.device, self.dtype)}
        if self.kind == "two-tower":
            shape_ = (batch, self.text_length)
            ids = torch.randint(1, max(self.vocabulary - 2, 2), shape_, generator=generator)
            # CLIP reads its text at the first end token, or at the largest id where it has no such
            # token: the last position, so that the text is as long as it can be.
            end = self.vocabulary - 1 if self.end_token in (None, 2) else self.end_token
            ids[ids == end] = 1
            ids[:, -1] = end
            inputs["input_ids"] = ids.to(self.device)
        return inputs


def placed(
    model: nn.Module, inputs: Mapping[str, Tensor], device: str | torch.device | None = None
) -> dict[str, Tensor]:
    """Return inputs on a model's device (or another), in its dtype where not integers."""
    like = next(model.parameters())
    return {
        key: value.to(device or like.device, like.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
    }
