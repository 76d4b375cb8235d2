"""Models of Hugging Face in which words and an image meet, BLIP and ViLT: what both share.

Inputs of noise are made from the configuration alone, so that costs need neither weights nor a
processor.

    bench.models.load("blip-vqa-base", random_weights=True).scope

A sample is prepared alone and runs beside others of exactly its shape. So no text and no image is
padded, and an answer does not depend on what else is in the batch: BLIP's decoder, as transformers
runs it, would read the padding of a question.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.engine.tower import override, without
from bench.models.loaded import Loaded, Reader

if TYPE_CHECKING:
    from bench.models.loaded import Images

T = TypeVar("T")
TYPES = ("blip", "vilt")
ATTENTION = "eager"  # the only one that transformers has for them
QUESTION_TOKENS = 35  # what BLIP's authors cut questions to, and captions when they score a match
PROMPT_TOKENS = 4  # a start token and "a picture of", the prompt of BLIP's authors


@dataclass(frozen=True)
class Joint(Loaded):
    """A model in which words and an image meet."""

    @property
    def text_length(self) -> int:  # type: ignore[override]
        return text_tokens(self.model)

    def example_inputs(self, batch: int, seed: int = 0) -> dict[str, Any]:
        return self.placed(noise(self.model, batch))

    @contextlib.contextmanager
    def valueless_inputs(
        self, words: int | None = None, frames: int = 0
    ) -> Iterator[dict[str, Any]]:
        with on_meta(self.model):
            yield self.example_inputs(1)


@dataclass(frozen=True)
class JointReader(Joint, Reader):
    """A model that is asked about images, a sample at a time."""

    def sample(self, images: Sequence[Any], text: str) -> dict[str, Tensor]:
        """Return the arguments (1,...) of one text about its images."""
        processor, wanted = self.require_processor(), images_of(self.model)
        if len(images) != wanted:
            count = "one image" if wanted == 1 else f"{wanted} images"
            raise BenchError(f"{self.name} looks at {count} with each text, not at {len(images)}")
        pictures = [image.convert("RGB") for image in images]
        pixels = processor.image_processor(pictures, return_tensors="pt")
        tokens = padded(
            processor.tokenizer, [text], truncation=True, max_length=longest_text(self.model)
        )
        return {**tokens, **{k: part if wanted == 1 else part[None] for k, part in pixels.items()}}

    def ask(
        self,
        images: Images,
        texts: Sequence[str],
        run: Callable[[dict[str, Tensor]], Sequence[T]],
    ) -> list[T]:
        """Return what `run` makes of each text about its images, a result a row, in their order."""
        samples = [self.sample(shown, text) for shown, text in zip(images, texts, strict=True)]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, sample in enumerate(samples):
            shape = tuple((key, tuple(part.shape)) for key, part in sorted(sample.items()))
            groups.setdefault(shape, []).append(i)
        results: dict[int, T] = {}
        for rows in groups.values():
            keys = samples[rows[0]].keys()
            batch = {key: torch.cat([samples[i][key] for i in rows]) for key in keys}
            results.update(zip(rows, run(self.placed(batch)), strict=True))
        return [results[i] for i in range(len(samples))]

    def pixel_values(self, images: Images) -> Tensor:
        """Return all images of all samples (I,C,H,W), as the image processor makes them."""
        pictures = [image.convert("RGB") for shown in images for image in shown]
        processor = self.require_processor().image_processor
        pixels: Tensor = processor(pictures, return_tensors="pt")["pixel_values"]
        return pixels


def images_of(model: Any) -> int:
    """Return how many images go with a text."""
    pairs = type(model).__name__ == "ViltForImagesAndTextClassification"
    return int(model.config.num_images) if pairs else 1


def padded(words: Any, texts: Sequence[str], **settings: Any) -> dict[str, Tensor]:
    """Return ids and mask of texts by a tokenizer, padded on its side to the longest."""
    settings = {"padding": True, "return_token_type_ids": False, **settings}
    return dict(words(list(texts), return_tensors="pt", **settings))


def longest_text(model: Any) -> int:
    """Return how many tokens the model's text side has positions for."""
    return int(getattr(model.config, "text_config", model.config).max_position_embeddings)


def text_tokens(model: Any) -> int:
    """Return how many tokens the text has whose cost is counted."""
    captions = type(model).__name__ == "BlipForConditionalGeneration"
    return min(PROMPT_TOKENS if captions else QUESTION_TOKENS, longest_text(model))


def image_size(config: Any) -> tuple[int, int]:
    """Return (height, width) of what the configuration of an image encoder takes."""
    size = config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def noise(model: Any, batch: int = 1) -> dict[str, Tensor]:
    """Return arguments of `model()`: images of noise, random words without padding."""
    generator = torch.Generator().manual_seed(0)
    config, count = model.config, images_of(model)
    vision, text = (getattr(config, part, config) for part in ("vision_config", "text_config"))
    images = (batch,) if count == 1 else (batch, count)
    channels = getattr(vision, "num_channels", 3)
    pixels = torch.randn(*images, channels, *image_size(vision), generator=generator)
    special = {getattr(text, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep")}
    usual = torch.tensor([i for i in range(text.vocab_size) if i not in special])
    ids = usual[torch.randint(len(usual), (batch, text_tokens(model)), generator=generator)]
    inputs = {"pixel_values": pixels, "input_ids": ids}
    if type(model).__name__ == "BlipForQuestionAnswering":
        inputs["decoder_input_ids"] = torch.full((batch, 1), int(text.bos_token_id))
    return inputs


@contextlib.contextmanager
def on_meta(model: Any) -> Iterator[None]:
    """Let a model run on the meta device, where masks cannot be read: they hide nothing."""
    with contextlib.ExitStack() as stack:
        if model.config.model_type == "vilt":
            encoder = getattr(model, "vilt", model)
            embed, warn = encoder.embeddings, "warn_if_padding_and_no_attention_mask"
            stack.enter_context(override(embed, "visual_embed", partial(_all_patches, embed)))
            stack.enter_context(override(embed, "forward", partial(_unmasked, embed.forward)))
            stack.enter_context(override(encoder, warn, lambda *args: None))  # it reads values
        if hasattr(model, "text_encoder"):
            stack.enter_context(without(model.text_encoder, "encoder_attention_mask"))
        yield


def _all_patches(
    embeddings: Any, pixels: Tensor, mask: Tensor, *args: Any, **kw: Any
) -> tuple[Tensor, Tensor, None]:
    """Return ViLT's class token and patches (B,1+P,C) of images without padding, and their mask.

    By the steps of the model itself, less the choice of patches.
    """
    x = embeddings.patch_embeddings(pixels)
    grid = x.shape[2:]
    side = embeddings.config.image_size // embeddings.config.patch_size
    first, table = embeddings.position_embeddings.split([1, side * side], 1)
    table = table.transpose(1, 2).unflatten(2, (side, side))
    places = [
        torch.nn.functional.interpolate(table, grid, mode="bilinear", align_corners=True)
        for _ in x  # as the model does, an image at a time
    ]
    x = (x + torch.cat(places)).flatten(2).transpose(1, 2)
    x = torch.cat([(embeddings.cls_token + first).expand(len(x), -1, -1), x], 1)
    seen = torch.nn.functional.interpolate(mask[:, None].float(), grid).flatten(1)
    return x, torch.cat([seen[:, :1], seen], 1), None


def _unmasked(embed: Callable[..., tuple[Tensor, Tensor]], *args: Any, **kw: Any) -> Any:
    """Return the sequence that ViLT's embeddings make, without its mask."""
    return embed(*args, **kw)[0], None
