"""Tiny multimodal language models of the real classes with seeded weights: no download."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

IMAGE, PAD, WORDS = 90, 0, 100
_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "image_size": 24,
    "patch_size": 4,
}
_TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "vocab_size": WORDS,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_IDS = {"image_token_id": IMAGE, "image_token_index": IMAGE}


def _ready(model: Any) -> Any:
    model = model.eval()
    for p in model.parameters():  # livelier than the usual start, so that tokens differ
        if p.dim() > 1:
            nn.init.normal_(p, std=0.15)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


def llava(backend: str = "sdpa", blocks: int = 6) -> Any:
    """LLaVA-1.5: 36 patches, grouped queries."""
    torch.manual_seed(0)
    text = {**_TEXT, "num_hidden_layers": blocks}
    config = LlavaConfig(vision_config=_VISION, text_config=text, vision_feature_layer=-2, **_IDS)
    config._attn_implementation = backend
    return _ready(LlavaForConditionalGeneration._from_config(config, attn_implementation=backend))


def llava_next(blocks: int = 6) -> Any:
    """LLaVA-NeXT: crops of 36 patches put together, with newlines."""
    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=_VISION,
        text_config={**_TEXT, "num_hidden_layers": blocks},
        vision_feature_layer=-2,
        image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]],
        **_IDS,
    )
    return _ready(LlavaNextForConditionalGeneration(config))


def blip2(blocks: int = 6) -> Any:
    """BLIP-2 with OPT: 8 queries."""
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config={**_VISION, "model_type": "blip_2_vision_model"},
        qformer_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "encoder_hidden_size": 32,
            "vocab_size": WORDS,
        },
        text_config={
            "model_type": "opt",
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": blocks,
            "num_attention_heads": 2,
            "vocab_size": WORDS,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 32,
            "pad_token_id": PAD,
            "eos_token_id": None,
        },
        num_query_tokens=8,
        **_IDS,
    )
    model = _ready(Blip2ForConditionalGeneration(config))
    model.language_model.generation_config.pad_token_id = PAD
    model.language_model.generation_config.eos_token_id = None
    nn.init.normal_(model.query_tokens)
    return model


def qwen2_vl(blocks: int = 6) -> Any:
    """Qwen2-VL: M-RoPE, patches merged two by two."""
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        vision_config={
            "depth": 4,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "temporal_patch_size": 1,
        },
        text_config={
            **_TEXT,
            "model_type": "qwen2_vl_text",
            "num_hidden_layers": blocks,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1e4,
            },
        },
        image_token_id=IMAGE,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    return _ready(Qwen2VLForConditionalGeneration(config))
