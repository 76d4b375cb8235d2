"""The kit's tiny multimodal language models, and a batch for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
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
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    qwen_batch,
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
    video_llava,
    video_llava_videos,
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
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "qwen_batch",
    "smolvlm",
    "smolvlm_batch",
    "video_llava",
    "video_llava_videos",
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
    "Qwen2-VL": (qwen2_vl, qwen_batch),
    "Qwen2.5-VL": (qwen2_5_vl, qwen_batch),
    "Qwen3-VL": (qwen3_vl, qwen_batch),
}


# --- videos ---------------------------------------------------------------------------------------

GRIDS = ((2, 4, 6), (3, 4, 4), (1, 6, 4))  # frames, rows and columns of patches


def patches(grids: Sequence[tuple[int, int, int]], seed: int = 0) -> Tensor:
    """(N,P) patches of images and videos with so many frames, rows and columns."""
    g = torch.Generator().manual_seed(seed + 7)
    return torch.randn(sum(t * h * w for t, h, w in grids), 48, generator=g)


def shown(grid: tuple[int, int, int], apart: bool) -> list[int]:
    """Tokens of a video; Qwen3-VL has the time between its frames."""
    t, h, w = grid
    frame = [VIDEO] * (h * w // 4)
    return sum(([40 + i, 92, *frame, 93] if apart else frame for i in range(t)), [])


def padded(rows: Sequence[list[int]], **more: Any) -> dict[str, Tensor]:
    """Prompts, padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    types = (ids == IMAGE).long() + 2 * (ids == VIDEO)
    mask = (ids != PAD).long()
    return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types, **more}


def videos(family: str, which: Sequence[int] = (0, 1, 2)) -> dict[str, Tensor]:
    """Prompts with a video each, no two of the same length."""
    words = ((3, 5), (1, 9), (2, 4))
    apart, rows = family == "Qwen3-VL", []
    for i in which:
        before, after = words[i]
        rows.append([*range(2, 2 + before), *shown(GRIDS[i], apart), *range(20, 20 + after)])
    pieces = patches(GRIDS).split([t * h * w for t, h, w in GRIDS])
    grid = torch.tensor([GRIDS[i] for i in which])
    pixels = torch.cat([pieces[i] for i in which])
    return padded(rows, pixel_values_videos=pixels, video_grid_thw=grid)
