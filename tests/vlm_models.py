"""The kit's tiny multimodal language models, and a batch for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from bench.check.multimodal import IMAGE, PAD, WORDS, blip2, llava, llava_next, qwen2_vl
from bench.check.prompts import (
    blip2_batch,
    llava_batch,
    llava_next_batch,
    pixels,
    prompts,
    qwen2_vl_batch,
)

__all__ = [
    "IMAGE",
    "MODELS",
    "PAD",
    "WORDS",
    "blip2",
    "blip2_batch",
    "llava",
    "llava_batch",
    "llava_next",
    "llava_next_batch",
    "pixels",
    "prompts",
    "qwen2_vl",
    "qwen2_vl_batch",
]

MODELS: dict[str, tuple[Callable[..., Any], Callable[[int], dict[str, Tensor]]]] = {
    "LLaVA": (llava, llava_batch),
    "LLaVA-NeXT": (llava_next, llava_next_batch),
    "BLIP-2": (blip2, blip2_batch),
    "Qwen2-VL": (qwen2_vl, qwen2_vl_batch),
}
