"""Tiny language models of the real classes that see images in crops, tiles or frames of a video.

As in `bench.check.multimodal`, weights are seeded and prompts padded.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from bench.check.multimodal import (
    AROUND,
    ENCODER,
    IMAGE,
    LLAMA,
    PAD,
    VIDEO,
    Batch,
    cropped,
    pixels,
    prompts,
    ready,
    unpadded,
)

_TILE = {**ENCODER, "image_size": 32}
_GEMMA = {**LLAMA, "model_type": "gemma3_text", "head_dim": 8}
_SIGLIP = {**ENCODER, "model_type": "siglip_vision_model", "vision_use_head": False}


def onevision(blocks: int = 6) -> Any:
    """LLaVA-OneVision: crops of 36 patches, without a class token; no more than two are in rows."""
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=_SIGLIP,
        text_config={**LLAMA, "model_type": "qwen2", "num_hidden_layers": blocks},
        image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]],
        vision_aspect_ratio="anyres_max_2",
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return ready(LlavaOnevisionForConditionalGeneration(config))


def next_video(blocks: int = 6) -> Any:
    """LLaVA-NeXT-Video: the crops of a LLaVA-NeXT, and frames that are pooled ahead."""
    torch.manual_seed(0)
    config = LlavaNextVideoConfig(
        vision_config=ENCODER,
        text_config={**LLAMA, "num_hidden_layers": blocks},
        image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]],
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return ready(LlavaNextVideoForConditionalGeneration(config))


def video_llava(blocks: int = 6) -> Any:
    """Video-LLaVA: an encoder of images and one of videos, whose frames keep their class token."""
    torch.manual_seed(0)
    config = VideoLlavaConfig(
        vision_config=ENCODER,
        text_config={**LLAMA, "num_hidden_layers": blocks},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return ready(VideoLlavaForConditionalGeneration(config))


def internvl(blocks: int = 6) -> Any:
    """InternVL: tiles of 64 patches, which are joined two by two."""
    torch.manual_seed(0)
    vision = {
        **_TILE,
        "model_type": "internvl_vision",
        "norm_type": "layer_norm",
        "use_qk_norm": True,
        "attention_bias": True,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config={**LLAMA, "model_type": "qwen2", "num_hidden_layers": blocks},
        image_token_id=IMAGE,
    )
    return ready(InternVLForConditionalGeneration(config))


def smolvlm(blocks: int = 6) -> Any:
    """SmolVLM: tiles of 64 patches, of which 4x4 are joined."""
    return _connected(SmolVLMForConditionalGeneration, SmolVLMConfig, blocks)


def idefics3(blocks: int = 6) -> Any:
    """Idefics3: the same."""
    return _connected(Idefics3ForConditionalGeneration, Idefics3Config, blocks)


def _connected(model: Any, config_of: Any, blocks: int) -> Any:
    torch.manual_seed(0)
    config = config_of(
        vision_config=_TILE,
        text_config={**LLAMA, "num_hidden_layers": blocks},
        image_token_id=IMAGE,
        scale_factor=4,
        pad_token_id=PAD,
    )
    return ready(model(config))


def paligemma(blocks: int = 6, backend: str = "sdpa") -> Any:
    """PaliGemma: 36 patches, a prompt that sees itself as a whole."""
    torch.manual_seed(0)
    config = PaliGemmaConfig(
        vision_config={**_SIGLIP, "projection_dim": 32},
        text_config={**_GEMMA, "model_type": "gemma", "num_hidden_layers": blocks},
        image_token_index=IMAGE,
        projection_dim=32,
    )
    model = PaliGemmaForConditionalGeneration._from_config(config, attn_implementation=backend)
    return ready(model)


def gemma3(blocks: int = 6, backend: str = "sdpa", window: int = 64) -> Any:
    """Gemma 3: 64 patches, of which 2x2 are averaged; every second block sees a window."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"]
    rope = {
        kind: {"rope_type": "default", "rope_theta": base}
        for kind, base in zip(kinds, (1e2, 1e4), strict=True)
    }
    text = {**_GEMMA, "layer_types": (kinds * blocks)[:blocks], "sliding_window": window}
    config = Gemma3Config(
        vision_config={**_SIGLIP, "image_size": 32},
        text_config={
            **text,
            "num_hidden_layers": blocks,
            "rope_parameters": rope,
            "query_pre_attn_scalar": 6,
        },
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
    )
    model = Gemma3ForConditionalGeneration._from_config(config, attn_implementation=backend)
    return ready(model)


def onevision_batch(n: int = 4, seed: int = 0) -> Batch:
    """The same images; those of more than two crops are made smaller."""
    return cropped(n, seed, _onevision_tokens)


def _onevision_tokens(height: int, width: int) -> int:
    """The same where the grid is made smaller, by its area compared with that of two crops."""
    rows, columns = unpadded(height, width)
    ratio = (rows * columns / (2 * 36)) ** 0.5
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return 36 + rows * (columns + 1)


def next_videos(n: int = 4, seed: int = 0) -> Batch:
    """Prompts with a video of three frames each, of 9 tokens."""
    return _videos(n, seed, 27)


def onevision_videos(n: int = 4, seed: int = 0) -> Batch:
    """The same with a new line behind."""
    return _videos(n, seed, 28)


def video_llava_videos(n: int = 4, seed: int = 0) -> Batch:
    """The same with 36 patches and a class token a frame."""
    return _videos(n, seed, 3 * 37)


def _videos(n: int, seed: int, tokens: int) -> Batch:
    batch = prompts([tokens] * n, AROUND[:n], seed)
    ids = batch["input_ids"]
    values = pixels(3 * n, seed=seed).view(n, 3, 3, 24, 24)
    return {**batch, "input_ids": ids.where(ids != IMAGE, VIDEO), "pixel_values_videos": values}


def qwen_videos(n: int = 4, seed: int = 0) -> Batch:
    """Videos of different lengths and sizes as packed patches, their frames side by side."""
    grids = torch.tensor([[3, 4, 6], [4, 4, 4], [2, 6, 6], [3, 4, 4]])[:n]
    g = torch.Generator().manual_seed(seed + 3)
    values = torch.randn(int(grids.prod(1).sum()), 3 * 4 * 4, generator=g)
    batch = prompts((grids.prod(1) // 4).tolist(), AROUND[:n], seed)
    ids = batch["input_ids"]
    batch |= {"input_ids": ids.where(ids != IMAGE, VIDEO), "mm_token_type_ids": 2 * (ids == IMAGE)}
    return {**batch, "pixel_values_videos": values, "video_grid_thw": grids}


def internvl_batch(n: int = 4, seed: int = 0) -> Batch:
    """Prompts with one tile, two, three and one; 16 tokens each."""
    tiles = [1, 2, 3, 1][:n]
    values = pixels(sum(tiles), 32, 32, seed)
    return {**prompts([16 * count for count in tiles], AROUND[:n], seed), "pixel_values": values}


def smolvlm_batch(n: int = 4, seed: int = 0) -> Batch:
    """Prompts with one tile, two, three and one; 4 tokens each, padded by tiles of zeros."""
    tiles = [1, 2, 3, 1][:n]
    values = torch.zeros(n, max(tiles), 3, 32, 32)
    for row, count in zip(values, tiles, strict=True):
        row[:count] = pixels(count, 32, 32, seed + count)
    return {**prompts([4 * count for count in tiles], AROUND[:n], seed), "pixel_values": values}


def paligemma_batch(n: int = 4, seed: int = 0) -> Batch:
    """Prompts that begin with an image, all of which is a prefix."""
    batch = prompts([36] * n, [(0, words) for words in (5, 9, 4, 3)][:n], seed)
    types = torch.zeros_like(batch["input_ids"])
    return {**batch, "pixel_values": pixels(n, seed=seed), "token_type_ids": types}


def gemma3_batch(n: int = 4, seed: int = 0) -> Batch:
    """Prompts with one image, two, one and one; 16 tokens each."""
    images = [1, 2, 1, 1][:n]
    batch = prompts([16 * count for count in images], AROUND[:n], seed)
    types = (batch["input_ids"] == IMAGE).long()
    return {**batch, "pixel_values": pixels(sum(images), 32, 32, seed), "token_type_ids": types}
