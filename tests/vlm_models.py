"""The kit's tiny multimodal language models, and a batch for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from bench.check.multimodal import (
    IMAGE,
    PAD,
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
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    qwen_batch,
)

__all__ = [
    "IMAGE",
    "MODELS",
    "PAD",
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
    "pixels",
    "prompts",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "qwen_batch",
]


def answers(model: Any, batch: Mapping[str, Tensor], new: int, **kw: Any) -> Tensor:
    """(B,new) tokens of greedy answers."""
    out: Tensor = model.generate(**batch, max_new_tokens=new, do_sample=False, **kw)
    return out[:, -new:]


MODELS: dict[str, tuple[Callable[..., Any], Callable[[int], dict[str, Tensor]]]] = {
    "LLaVA": (llava, llava_batch),
    "LLaVA-NeXT": (llava_next, llava_next_batch),
    "BLIP-2": (blip2, blip2_batch),
    "BLIP-2 T5": (blip2_t5, blip2_t5_batch),
    "Qwen2-VL": (qwen2_vl, qwen_batch),
    "Qwen2.5-VL": (qwen2_5_vl, qwen_batch),
    "Qwen3-VL": (qwen3_vl, qwen_batch),
}
