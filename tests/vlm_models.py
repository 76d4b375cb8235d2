"""The kit's tiny multimodal language models, and a batch for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
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


# --- videos ---------------------------------------------------------------------------------------

VIDEO = 91
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
