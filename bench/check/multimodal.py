"""Tiny multimodal language models of the real classes with seeded weights, and prompts for them.

Prompts are padded, no two of the same length, each with an image in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from bench.check.models import VISION, clip
from bench.engine.families.guide import TextGuide
from bench.models.guide import spelled

IMAGE, VIDEO, PAD, WORDS = 90, 91, 0, 100
AROUND = ((3, 5), (1, 9), (2, 4), (5, 3))  # words ahead of the image and behind it, by prompt
Batch = dict[str, Tensor]
ENCODER = {**VISION, "model_type": "clip_vision_model", "image_size": 24}
_LANGUAGE = {
    "hidden_size": 32,
    "vocab_size": WORDS,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "eos_token_id": None,
}
LLAMA = {
    **_LANGUAGE,
    "model_type": "llama",
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
}
_OPT = {
    **_LANGUAGE,
    "model_type": "opt",
    "ffn_dim": 48,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 32,
}
_T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "vocab_size": WORDS,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 24,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
}
_QFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "encoder_hidden_size": 32,
    "vocab_size": WORDS,
}
_MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
_PACKED = {
    "depth": 4,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 1,
}
_QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 91,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
}
_IDS = {"image_token_id": IMAGE, "image_token_index": IMAGE}


def ready(model: Any) -> Any:
    """A model in eval mode whose answers do not end."""
    for p in model.parameters():  # livelier than the usual start, so that tokens differ
        if p.dim() > 1:
            nn.init.normal_(p, std=0.15)
    for part in (model, getattr(model, "language_model", model)):
        if getattr(part, "generation_config", None) is not None:
            part.generation_config.pad_token_id = PAD
            part.generation_config.eos_token_id = None
    return model.eval()


def text_guide() -> TextGuide:
    """A tiny CLIP that reads the words of a prompt, an id for each."""
    with torch.random.fork_rng(devices=[]):
        return spelled(ready(clip(text_layers=1)), (PAD, IMAGE))


def llava(backend: str = "sdpa", blocks: int = 6) -> Any:
    """LLaVA-1.5: 36 patches, grouped queries."""
    torch.manual_seed(0)
    text = {**LLAMA, "num_hidden_layers": blocks}
    config = LlavaConfig(vision_config=ENCODER, text_config=text, vision_feature_layer=-2, **_IDS)
    config._attn_implementation = backend
    model = ready(LlavaForConditionalGeneration._from_config(config, attn_implementation=backend))
    model.text_guide = text_guide()
    return model


def llava_next(blocks: int = 6) -> Any:
    """LLaVA-NeXT: crops of 36 patches put together, with newlines."""
    torch.manual_seed(0)
    text, pinpoints = {**LLAMA, "num_hidden_layers": blocks}, [[24, 48], [48, 24], [48, 48]]
    shape = {"vision_config": ENCODER, "text_config": text, "image_grid_pinpoints": pinpoints}
    config = LlavaNextConfig(**shape, vision_feature_layer=-2, **_IDS)
    model = ready(LlavaNextForConditionalGeneration(config))
    model.text_guide = text_guide()
    return model


def blip2(blocks: int = 6) -> Any:
    """BLIP-2 with OPT: 8 queries."""
    return _blip2({**_OPT, "num_hidden_layers": blocks})


def blip2_t5(backend: str = "sdpa", blocks: int = 6) -> Any:
    """BLIP-2 with T5: 8 queries; so many blocks in the encoder, two in the decoder."""
    return _blip2({**_T5, "num_layers": blocks}, backend)


def _blip2(text: dict[str, Any], backend: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config={**ENCODER, "model_type": "blip_2_vision_model"},
        qformer_config=_QFORMER,
        text_config=text,
        num_query_tokens=8,
        **_IDS,
    )
    model = Blip2ForConditionalGeneration._from_config(config, attn_implementation=backend)
    ready(model)
    nn.init.normal_(model.query_tokens)
    return model


def qwen2_vl(blocks: int = 6) -> Any:
    """Qwen2-VL: M-RoPE, patches merged two by two."""
    vision = {**_PACKED, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    return _qwen(Qwen2VLForConditionalGeneration, Qwen2VLConfig, vision, blocks)


def qwen2_5_vl(blocks: int = 6) -> Any:
    """Qwen2.5-VL: windows of 2x2 groups in all blocks of the image encoder but one."""
    vision: dict[str, Any] = {**_PACKED, "hidden_size": 32, "out_hidden_size": 32}
    vision |= {"intermediate_size": 48, "window_size": 16, "fullatt_block_indexes": [3]}
    return _qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, vision, blocks)


def qwen3_vl(blocks: int = 6) -> Any:
    """Qwen3-VL: DeepStack of two blocks, learned positions resampled, queries and keys normed."""
    vision: dict[str, Any] = {**_PACKED, "hidden_size": 32, "out_hidden_size": 32}
    vision |= {"intermediate_size": 48, "num_position_embeddings": 25}
    vision |= {"deepstack_visual_indexes": [0, 2]}
    return _qwen(Qwen3VLForConditionalGeneration, Qwen3VLConfig, vision, blocks, head_dim=8)


def _qwen(model: Any, config: Any, vision: dict[str, Any], blocks: int, **more: int) -> Any:
    torch.manual_seed(0)
    text = {**LLAMA, "num_hidden_layers": blocks, **more, "rope_parameters": _MROPE}
    text["model_type"] = config.sub_configs["text_config"].model_type
    made = ready(model(config(vision_config=vision, text_config=text, **_QWEN_IDS)))
    made.generation_config.suppress_tokens = list(_QWEN_IDS.values())  # no answer's words
    return made


def prompts(
    images: Sequence[int], words: Sequence[tuple[int, int]], seed: int = 0, side: str = "left"
) -> Batch:
    """Prompts with so many image tokens between so many words, padded on one side."""
    g = torch.Generator().manual_seed(seed + 1)
    rows = []
    for n, (before, after) in zip(images, words, strict=True):
        text = torch.randint(2, 80, (before + after,), generator=g).tolist()
        rows.append(text[:before] + [IMAGE] * n + text[before:])
    longest = max(map(len, rows))
    for row in rows:
        padding = [PAD] * (longest - len(row))
        row[:] = padding + row if side == "left" else row + padding
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def pixels(n: int, height: int = 24, width: int = 24, seed: int = 0) -> Tensor:
    """(N,3,H,W) images of smooth noise."""
    g = torch.Generator().manual_seed(seed + 2)
    coarse = torch.randn(n, 3, height // 8, width // 8, generator=g)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return smooth + 0.2 * torch.randn(n, 3, height, width, generator=g)


def llava_batch(n: int = 4, seed: int = 0) -> Batch:
    """Prompts of different lengths, an image each."""
    return {**prompts([36] * n, AROUND[:n], seed), "pixel_values": pixels(n, seed=seed)}


def llava_next_batch(n: int = 4, seed: int = 0) -> Batch:
    """Images of different shapes, so that samples have unequally many image tokens."""
    return cropped(n, seed, _next_tokens)


def cropped(n: int, seed: int, tokens: Callable[[int, int], int]) -> Batch:
    """Images of three and of five crops, of which one becomes so many tokens by its size."""
    sizes = [(24, 48), (48, 48), (48, 24), (40, 48)][:n]
    crops = [3, 5, 3, 5][:n]
    g = torch.Generator().manual_seed(seed + 3)
    values = torch.zeros(n, max(crops), 3, 24, 24)
    for i, c in enumerate(crops):
        values[i, :c] = torch.randn(c, 3, 24, 24, generator=g)
    batch = prompts([tokens(*size) for size in sizes], AROUND[:n], seed)
    return {**batch, "pixel_values": values, "image_sizes": torch.tensor(sizes)}


def _next_tokens(height: int, width: int) -> int:
    """Tokens of an image: base crop, then the unpadded grid with a newline a row."""
    rows, columns = unpadded(height, width)
    return 36 + rows * (columns + 1)


def unpadded(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches of an image without its padding."""
    rows, columns = (12 if height > 24 else 6), (12 if width > 24 else 6)
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns * 1.0 / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows * 1.0 / height, 7))) // 2)
    return rows, columns


def blip2_batch(n: int = 4, seed: int = 0, side: str = "left") -> Batch:
    """Prompts that begin with eight image tokens."""
    batch = prompts([8] * n, [(0, words) for words in (5, 9, 4, 3)][:n], seed, side)
    return {**batch, "pixel_values": pixels(n, seed=seed)}


def blip2_t5_batch(n: int = 4, seed: int = 0) -> Batch:
    """The same, padded behind as T5 is, and the token with which its decoder begins."""
    return {**blip2_batch(n, seed, "right"), "decoder_input_ids": torch.full((n, 1), PAD)}


def qwen_batch(n: int = 4, seed: int = 0) -> Batch:
    """Of Qwen's models: images of different sizes as packed patches."""
    grids = torch.tensor([[1, 6, 6], [1, 4, 8], [1, 6, 4], [1, 8, 8]])[:n]
    g = torch.Generator().manual_seed(seed + 3)
    values = torch.randn(int(grids.prod(1).sum()), 3 * 4 * 4, generator=g)
    batch = prompts((grids.prod(1) // 4).tolist(), AROUND[:n], seed)
    types = (batch["input_ids"] == IMAGE).long()
    return {**batch, "pixel_values": values, "image_grid_thw": grids, "mm_token_type_ids": types}


def alone(batch: Mapping[str, Tensor], i: int) -> Batch:
    """One sample without its padding."""
    filled, one = batch["attention_mask"][i] > 0, {}
    for key, value in batch.items():
        if key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            one[key] = value[i : i + 1, filled]
        elif key in ("pixel_values", "pixel_values_videos") and _grids(batch) is not None:
            sizes = _grids(batch).prod(1).tolist()  # packed patches
            one[key] = value[sum(sizes[:i]) : sum(sizes[: i + 1])]
        elif key == "pixel_values" and len(value) > len(
            batch["input_ids"]
        ):  # some prompts have several
            tokens = (batch["input_ids"] == IMAGE).sum(1)
            sizes = (tokens * len(value) // tokens.sum()).tolist()
            one[key] = value[sum(sizes[:i]) : sum(sizes[: i + 1])]
        else:
            one[key] = value[i : i + 1]
    return one


def _grids(batch: Mapping[str, Tensor]) -> Any:
    """(N,3) slices, rows and columns of packed images or videos; None of others."""
    return batch.get("image_grid_thw", batch.get("video_grid_thw"))
