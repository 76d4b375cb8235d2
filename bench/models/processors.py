"""What is saved beside a model of Hugging Face to feed it: image processors, tokenizers, both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def saved(auto: str, where: str, local: bool) -> Any:
    """Return what a class of transformers reads beside a model, or None where files are missing.

    Args:
        auto: the class, such as "AutoProcessor".
        where: the model's folder or id.
        local: look at no hub.
    """
    import transformers

    with contextlib.suppress(OSError, ValueError, ImportError, KeyError, AttributeError):
        return getattr(transformers, auto).from_pretrained(
            where, trust_remote_code=False, local_files_only=local
        )
    return None


def processor_of(where: str, local: bool, padding_side: str) -> Any:
    """Return the processor of a model that reads; None where files are missing."""
    processor = saved("AutoProcessor", where, local)
    words = getattr(processor, "tokenizer", None)
    if words is None or not knows_words(words):
        return None
    words.padding_side = padding_side
    words.pad_token = words.pad_token or words.eos_token
    return processor


def knows_words(tokenizer: Any) -> bool:
    """Whether a tokenizer was read from files: without any it comes with special tokens alone."""
    return len(tokenizer) > len(tokenizer.all_special_ids)


def tokenizer_of(where: str, local: bool) -> Callable[[list[str]], Mapping[str, Tensor]] | None:
    """Return a function: texts -> ids and mask (B,L), padded to full length.

    SigLIP was trained on texts so padded; CLIP ignores padding.
    """
    words = saved("AutoTokenizer", where, local)
    if words is None or not knows_words(words):
        return None
    return partial(
        words,
        padding="max_length",
        truncation=True,
        return_token_type_ids=False,
        return_tensors="pt",
    )


def transform_of(images: Any) -> Callable[[Any], Tensor] | None:
    """Return a function of an image processor: PIL image -> (C,H,W); None for None."""

    def transform(image: Any) -> Tensor:
        pixels: Tensor = images(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels

    return None if images is None else transform
