"""The CLIP that a LLaVA was built on, for methods that compare patches with the question.

llava.model.text_guide = guide(llava, clip)       # two models that `load` gave
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.engine.families.guide import TextGuide
from bench.engine.families.language import image_token_id
from bench.models.loaded import Loaded, TwoTower
from bench.models.multimodal import PromptedModel

# Image encoders that LLaVA-1.5 and LLaVA-NeXT took over: width, pixels and patches a side.
ORIGINS = {(1024, 336, 14): "openai/clip-vit-large-patch14-336"}


def guide(llava: PromptedModel, clip: Loaded) -> TextGuide:
    """Return what lets methods ask `clip` about the questions put to `llava`.

    Where the tokenizers are missing, as with random weights, each id is a word of its own.

    Raises:
        BenchError: `clip` has no text tower, or another width than the image encoder.
    """
    width = llava.model.config.vision_config.hidden_size
    if not isinstance(clip, TwoTower) or clip.model.config.vision_config.hidden_size != width:
        raise BenchError(f"{clip.name} is not the CLIP that the image encoder of {llava.name} was")
    if clip.tokenizer is None or llava.processor is None:
        return spelled(clip.model, (image_token_id(llava.model),))
    words: Any = clip.tokenizer  # a tokenizer of transformers, told to pad and to cut
    return TextGuide(clip.model, words.func, llava.questions)


def offer(loaded: Loaded, load: Callable[[str], Loaded]) -> None:
    """Let a model's `text_guide` be loaded by name when a method first asks for it."""
    vision = getattr(getattr(loaded.model, "config", None), "vision_config", None)
    shape = [getattr(vision, side, None) for side in ("hidden_size", "image_size", "patch_size")]
    name = next((name for known, name in ORIGINS.items() if [*known] == shape), None)
    if name is not None and isinstance(loaded, PromptedModel):
        loaded.model.text_guide = partial(_late, loaded, load, name)


def _late(llava: PromptedModel, load: Callable[[str], Loaded], name: str) -> TextGuide:
    with torch.device("meta" if llava.device.type == "meta" else "cpu"):
        clip = load(name)
    clip.model.vision_model.encoder = nn.Identity()  # the LLaVA has its own
    return guide(llava, clip)


def spelled(clip: Any, skip: Collection[int]) -> TextGuide:
    """Return a guide without tokenizers: an id of the language model is an id of CLIP's."""
    vocabulary = clip.config.text_config.vocab_size - 2  # the last two begin and end a text

    def decode(ids: Tensor) -> list[str]:
        return [" ".join(str(i) for i in row if i not in skip) for row in ids.tolist()]

    def tokenizer(texts: list[str]) -> dict[str, list[list[int]]]:
        rows = [[int(word) % vocabulary for word in text.split()] for text in texts]
        return {"input_ids": [[vocabulary, *row, vocabulary + 1] for row in rows]}

    return TextGuide(clip, tokenizer, decode)
