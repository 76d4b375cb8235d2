"""The kit's tiny multimodal language models, and a batch for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bench.check.multimodal import (
    IMAGE,
    PAD,
    VIDEO,
    WORDS,
    alone,
    blip2,
    blip2_batch,
    blip2_t5,
    blip2_t5_batch,
    llava,
    llava_batch,
    llava_next,
    llava_next_batch,
    pixels,
    prompts,
    qwen2_vl,
    qwen2_vl_batch,
)
from bench.check.tiles import (
    gemma3,
    gemma3_batch,
    idefics3,
    internvl,
    internvl_batch,
    next_video,
    next_videos,
    onevision,
    onevision_batch,
    onevision_videos,
    paligemma,
    paligemma_batch,
    smolvlm,
    smolvlm_batch,
)

__all__ = [
    "IMAGE",
    "MODELS",
    "PAD",
    "VIDEO",
    "WORDS",
    "alone",
    "answers",
    "blip2",
    "blip2_batch",
    "blip2_t5",
    "blip2_t5_batch",
    "llava",
    "llava_batch",
    "llava_next",
    "llava_next_batch",
    "gemma3",
    "gemma3_batch",
    "idefics3",
    "internvl",
    "internvl_batch",
    "next_video",
    "next_videos",
    "onevision",
    "onevision_batch",
    "onevision_videos",
    "paligemma",
    "paligemma_batch",
    "pixels",
    "prompts",
    "qwen2_vl",
    "qwen2_vl_batch",
    "smolvlm",
    "smolvlm_batch",
    "words_of",
]


def answers(model: Any, batch: Mapping[str, Tensor], new: int, **kw: Any) -> Tensor:
    """(B,new) tokens of greedy answers."""
    out: Tensor = model.generate(**batch, max_new_tokens=new, do_sample=False, **kw)
    return out[:, -new:]


SAID = {
    "what": 3,
    "is": 4,
    "this": 5,
    "red": 6,
    "USER": 7,
    "ASSISTANT": 8,
    ":": 9,
    "?": 10,
    "<boi>": 11,
    "<eoi>": 12,
}


def words_of(image: str, video: str = "", **marks: str) -> PreTrainedTokenizerFast:
    """A tokenizer that knows a few words and these placeholders; `marks` are its attributes."""
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers import models as kinds

    places = {image: IMAGE} | ({video: VIDEO} if video else {})
    vocabulary = {"<pad>": PAD, "<s>": 1, "<unk>": 2, **SAID, **places}
    words = Tokenizer(kinds.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        additional_special_tokens=list(places),
        **({"extra_special_tokens": marks} if marks else {}),
    )


MODELS: dict[str, tuple[Callable[..., Any], Callable[[int], dict[str, Tensor]]]] = {
    "LLaVA": (llava, llava_batch),
    "LLaVA-NeXT": (llava_next, llava_next_batch),
    "LLaVA-OneVision": (onevision, onevision_batch),
    "InternVL": (internvl, internvl_batch),
    "SmolVLM": (smolvlm, smolvlm_batch),
    "PaliGemma": (paligemma, paligemma_batch),
    "Gemma 3": (gemma3, gemma3_batch),
    "BLIP-2": (blip2, blip2_batch),
    "BLIP-2 T5": (blip2_t5, blip2_t5_batch),
    "Qwen2-VL": (qwen2_vl, qwen2_vl_batch),
}
