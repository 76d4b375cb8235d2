"""Prompts with images for the tiny multimodal language models, left-padded, all of them unequal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bench.check.multimodal import IMAGE, PAD

WORDS = ((3, 5), (1, 9), (2, 4), (5, 3))  # words ahead of the image, and behind it
Batch = dict[str, Tensor]


def prompts(images: Sequence[int], words: Sequence[tuple[int, int]], seed: int = 0) -> Batch:
    """Left-padded prompts with so many image tokens between so many words."""
    g = torch.Generator().manual_seed(seed + 1)
    rows = []
    for n, (before, after) in zip(images, words, strict=True):
        text = torch.randint(2, 80, (before + after,), generator=g).tolist()
        rows.append(text[:before] + [IMAGE] * n + text[before:])
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def pixels(n: int, height: int = 24, width: int = 24, seed: int = 0) -> Tensor:
    """(N,3,H,W) images of smooth noise."""
    g = torch.Generator().manual_seed(seed + 2)
    coarse = torch.randn(n, 3, height // 8, width // 8, generator=g)
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear") + 0.2 * torch.randn(
        n, 3, height, width, generator=g
    )


def llava_batch(n: int = 4, seed: int = 0) -> Batch:
    """Prompts of different lengths, an image each."""
    return {**prompts([36] * n, WORDS[:n], seed), "pixel_values": pixels(n, seed=seed)}


def llava_next_batch(n: int = 4, seed: int = 0) -> Batch:
    """Images of different shapes, so that samples have unequally many image tokens."""
    sizes = [(24, 48), (48, 48), (48, 24), (40, 48)][:n]
    crops = [3, 5, 3, 5][:n]
    g = torch.Generator().manual_seed(seed + 3)
    values = torch.zeros(n, max(crops), 3, 24, 24)
    for i, c in enumerate(crops):
        values[i, :c] = torch.randn(c, 3, 24, 24, generator=g)
    tokens = [_next_tokens(*size) for size in sizes]
    batch = prompts(tokens, WORDS[:n], seed)
    return {**batch, "pixel_values": values, "image_sizes": torch.tensor(sizes)}


def _next_tokens(height: int, width: int) -> int:
    """Tokens of an image: base crop, then the unpadded grid with a newline a row."""
    rows, columns = (12 if height > 24 else 6), (12 if width > 24 else 6)
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns * 1.0 / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows * 1.0 / height, 7))) // 2)
    return 36 + rows * (columns + 1)


def blip2_batch(n: int = 4, seed: int = 0) -> Batch:
    """Prompts that begin with eight image tokens."""
    batch = prompts([8] * n, [(0, words) for words in (5, 9, 4, 3)][:n], seed)
    return {**batch, "pixel_values": pixels(n, seed=seed)}


def qwen2_vl_batch(n: int = 4, seed: int = 0) -> Batch:
    """Images of different sizes as packed patches."""
    grids = torch.tensor([[1, 6, 6], [1, 4, 8], [1, 6, 4], [1, 8, 8]])[:n]
    g = torch.Generator().manual_seed(seed + 3)
    values = torch.randn(int(grids.prod(1).sum()), 3 * 4 * 4, generator=g)
    batch = prompts((grids.prod(1) // 4).tolist(), WORDS[:n], seed)
    types = (batch["input_ids"] == IMAGE).long()
    return {**batch, "pixel_values": values, "image_grid_thw": grids, "mm_token_type_ids": types}


def alone(batch: Mapping[str, Tensor], i: int) -> Batch:
    """One sample without its padding."""
    padding = int((batch["attention_mask"][i] == 0).sum())
    one = {}
    for key, value in batch.items():
        if key in ("input_ids", "attention_mask", "mm_token_type_ids"):
            one[key] = value[i : i + 1, padding:]
        elif key == "pixel_values" and "image_grid_thw" in batch:  # packed patches
            sizes = batch["image_grid_thw"].prod(1).tolist()
            one[key] = value[sum(sizes[:i]) : sum(sizes[: i + 1])]
        else:
            one[key] = value[i : i + 1]
    return one
