"""Tiny models of the real classes with seeded weights, built from configs: no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
_VISION = {**_SMALL, "num_hidden_layers": 4, "image_size": 32, "patch_size": 4}
EOS = 99
_WORDS = {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": EOS}
_TEXT = {**_SMALL, **_WORDS, "max_position_embeddings": 14}


def images(batch: int = 2, size: int = 32) -> Tensor:
    """Noise with structure: neighbouring patches are alike, as in pictures."""
    coarse = torch.randn(batch, 3, size // 8, size // 8)
    noise = torch.randn(batch, 3, size, size)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") + 0.3 * noise


def token_ids(batch: int = 2, length: int = 14) -> Tensor:
    """Random words with the end of text at a different place in each row, then padding."""
    ids = torch.randint(1, 90, (batch, length))
    for row in range(batch):
        end = length - 1 - 2 * (row % 3)
        ids[row, end] = EOS
        ids[row, end + 1 :] = 0
    return ids


def timm_vit(**kw: Any) -> nn.Module:
    """A timm VisionTransformer, 64 patches and a class token."""
    settings = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "num_classes": 5,
        **kw,
    }
    torch.manual_seed(0)
    return _ready(timm.models.vision_transformer.VisionTransformer(**settings))


def distilled_vit() -> nn.Module:
    """A timm DeiT with a distillation token."""
    torch.manual_seed(0)
    cls = timm.models.deit.VisionTransformerDistilled
    return _ready(cls(img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5))


def clip(attention: str = "sdpa", text_layers: int = 3) -> nn.Module:
    """Hugging Face CLIP, both towers."""
    torch.manual_seed(0)
    text = {**_TEXT, "num_hidden_layers": text_layers, "pad_token_id": 0}
    config = CLIPConfig(vision_config=_VISION, text_config=text, projection_dim=16)
    config._attn_implementation = attention
    return _ready(CLIPModel(config))


def siglip(attention: str = "sdpa", text_layers: int = 3) -> nn.Module:
    """Hugging Face SigLIP, both towers."""
    torch.manual_seed(0)
    text = {**_TEXT, "num_hidden_layers": text_layers, "projection_size": 32}
    config = SiglipConfig(vision_config=_VISION, text_config=text)
    config._attn_implementation = attention
    return _ready(SiglipModel(config))


def hf_vit() -> nn.Module:
    """Hugging Face ViT with a classifier."""
    torch.manual_seed(0)
    return _ready(ViTForImageClassification(ViTConfig(**_VISION, num_labels=5)))


def dinov2() -> nn.Module:
    """Hugging Face DINOv2 with a classifier, which reads the mean of all positions."""
    torch.manual_seed(0)
    config = Dinov2Config(**{**_VISION, "mlp_ratio": 2}, num_labels=5)
    return _ready(Dinov2ForImageClassification(config))


def _ready(model: Any) -> nn.Module:
    return model.eval()  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm": timm_vit,
    "timm-avg-qknorm-ls": lambda: timm_vit(
        global_pool="avg", qk_norm=True, init_values=0.1, class_token=False, fc_norm=True
    ),
    "timm-registers": lambda: timm_vit(reg_tokens=4),
    "timm-distilled": distilled_vit,
    "clip": clip,
    "clip-eager": lambda: clip("eager"),
    "siglip": siglip,
    "hf-vit": hf_vit,
    "dinov2": dinov2,
}
