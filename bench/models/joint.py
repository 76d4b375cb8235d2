"""Models of Hugging Face in which words and an image meet: BLIP and ViLT.

Which head a model has, its configuration says under `architectures`. Inputs of noise are made from
the configuration alone, so that costs need neither weights nor a processor.

    bench.models.load("blip-vqa-base", random_weights=True).scope
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError
from bench.models import feeds as joint_feeds
from bench.models import multimodal
from bench.models.loaded import Loaded

if TYPE_CHECKING:
    from torch import Tensor

TYPES = ("blip", "vilt")
KINDS = {
    "BlipForImageTextRetrieval": "matcher",
    "BlipForQuestionAnswering": "answerer",
    "BlipForConditionalGeneration": "captioner",
    "ViltForQuestionAnswering": "answerer",
    "ViltForImagesAndTextClassification": "pair-classifier",
    "ViltModel": "encoder",
}
ATTENTION = "eager"  # the only one that transformers has for them
QUESTION_TOKENS = joint_feeds.CAPTION_TOKENS  # BLIP's authors cut questions to the same length
PROMPT_TOKENS = 4  # a start token and "a picture of", the prompt of BLIP's authors


def class_for(name: str, config: Any) -> Any:
    """Return the class of a model of one of these types.

    Raises:
        BenchError: its configuration names none that is supported.
    """
    import transformers

    for architecture in config.architectures or []:
        if architecture in KINDS:
            return getattr(transformers, architecture)
    raise BenchError(
        f"{name} is a {config.model_type} with {config.architectures or 'no named architecture'}: "
        f"supported are {', '.join(KINDS)}; name one under 'architectures' in its config.json"
    )


def describe(name: str, model: Any, provenance: dict[str, Any], processor: Any) -> Loaded:
    """Read from a model's configuration how it is fed; `processor` may be None."""
    config, kind = model.config, KINDS[type(model).__name__]
    if type(model).__name__ == "BlipForQuestionAnswering":  # its answers read padded questions
        from bench.engine.families import blip

        blip.heed_padding(model.text_decoder.bert)
    vision, text = (getattr(config, part, config) for part in ("vision_config", "text_config"))
    tokens = _text_tokens(kind, text)
    size = vision.image_size
    return Loaded(
        name=name,
        model=model,
        kind=kind,
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        channels=int(getattr(vision, "num_channels", 3)),
        text_length=tokens,
        vocabulary=int(text.vocab_size),
        end_token=getattr(text, "sep_token_id", None),
        classes=int(config.num_labels) if type(model).__name__.startswith("ViltFor") else 0,
        covers=_scope(kind, type(model).__name__, tokens),
        example=lambda batch: noise(model, batch),
        provenance=provenance,
        **_feeds(name, model, kind, processor),
    )


def _text_tokens(kind: str, text: Any) -> int:
    wanted = PROMPT_TOKENS if kind == "captioner" else QUESTION_TOKENS
    return min(wanted, int(text.max_position_embeddings))


def _scope(kind: str, architecture: str, tokens: int) -> str:
    if kind == "matcher":
        return f"one image and one text of {tokens} tokens, the score of their match"
    if kind == "captioner":
        return f"one image and a prompt of {tokens} tokens, the next token at each of them"
    if kind == "pair-classifier":
        return f"two images, each with a statement of {tokens} tokens, one judgement"
    if architecture == "BlipForQuestionAnswering":
        return f"one image and one question of {tokens} tokens, the answer's first token"
    said = "its answer" if kind == "answerer" else "through the whole encoder"
    return f"one image and one text of {tokens} tokens, {said}"


def processor_of(where: str, local: bool) -> Any:
    """Return the processor that was saved beside a model, or None where files are missing."""
    found = multimodal.processor_of(where, local)
    if found is not None:
        found.tokenizer.padding_side = "right"  # these models' texts are read from their start
    return found


def _feeds(name: str, model: Any, kind: str, processor: Any) -> dict[str, Any]:
    """The fields of `Loaded` that say how samples are put to the model."""
    feeds = joint_feeds.matching(model) if kind == "matcher" else {}
    if processor is None:
        return feeds
    if kind == "matcher":
        return {
            **feeds,
            "transform": _transform(processor.image_processor),
            "tokenizer": joint_feeds.captions_of(model, processor),
        }
    if kind == "encoder":
        return {}
    feeds["teach"] = joint_feeds.teaching(model, processor)
    if kind == "pair-classifier":
        return {**feeds, "judge": joint_feeds.judging(name, model, processor)}
    put = joint_feeds.chosen if model.config.model_type == "vilt" else joint_feeds.spoken
    return {**feeds, "answer": put(name, model, processor)}


def _transform(images: Any) -> Any:
    def transform(image: Any) -> Tensor:
        pixels: Tensor = images(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels

    return transform


def noise(model: Any, batch: int = 1) -> dict[str, Tensor]:
    """Return arguments of `model()`: images of noise, random words without padding."""
    import torch

    generator = torch.Generator().manual_seed(0)
    config, kind = model.config, KINDS[type(model).__name__]
    vision, text = (getattr(config, part, config) for part in ("vision_config", "text_config"))
    size = vision.image_size
    square = (size, size) if isinstance(size, int) else tuple(size)
    images = (batch, config.num_images) if kind == "pair-classifier" else (batch,)
    pixels = torch.randn(*images, getattr(vision, "num_channels", 3), *square, generator=generator)
    shape = (batch, _text_tokens(kind, text))
    special = {getattr(text, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep")}
    usual = torch.tensor([i for i in range(text.vocab_size) if i not in special])
    ids = usual[torch.randint(len(usual), shape, generator=generator)]
    given = {"pixel_values": pixels, "input_ids": ids}
    if type(model).__name__ == "BlipForQuestionAnswering":
        given["decoder_input_ids"] = torch.full((batch, 1), int(text.bos_token_id))
    return given


@contextlib.contextmanager
def on_meta(model: Any) -> Iterator[None]:
    """Let a model run on the meta device, where masks cannot be read: they hide nothing."""
    from bench.engine.tower import override

    with contextlib.ExitStack() as stack:
        if model.config.model_type == "vilt":
            encoder = getattr(model, "vilt", model)
            embed, warn = encoder.embeddings, "warn_if_padding_and_no_attention_mask"
            stack.enter_context(override(embed, "visual_embed", partial(whole, embed)))
            stack.enter_context(override(embed, "forward", partial(unmasked, embed.forward)))
            stack.enter_context(override(encoder, warn, lambda *args: None))  # it reads values
        if hasattr(model, "text_encoder"):
            stack.enter_context(multimodal.without(model.text_encoder, "encoder_attention_mask"))
        yield


def whole(
    embeddings: Any, pixels: Tensor, mask: Tensor, *args: Any, **kw: Any
) -> tuple[Tensor, Tensor, None]:
    """Return ViLT's class token and patches (B,1+P,C) of images without padding, and their mask.

    By the steps of the model itself, less the choice of patches.
    """
    import torch

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


def unmasked(embed: Callable[..., tuple[Tensor, Tensor]], *args: Any, **kw: Any) -> Any:
    """Return the sequence that ViLT's embeddings make, without its mask."""
    return embed(*args, **kw)[0], None
