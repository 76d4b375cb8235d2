"""Tiny models of the real classes, built from configs, so that no test downloads anything."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn
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
_TEXT = {**_SMALL, "num_hidden_layers": 3, "max_position_embeddings": 14, "vocab_size": 100}
EOS = 99


def images(batch: int = 2, size: int = 32) -> torch.Tensor:
    """Seeded noise with structure: neighbouring patches are alike, as in pictures."""
    coarse = torch.randn(batch, 3, size // 8, size // 8)
    noise = torch.randn(batch, 3, size, size)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") + 0.3 * noise


def token_ids(batch: int = 2, length: int = 14) -> torch.Tensor:
    """Random words with the end of text at a different place in each row, then padding."""
    ids = torch.randint(1, 90, (batch, length))
    for row in range(batch):
        end = length - 1 - 2 * (row % 3)
        ids[row, end] = EOS
        ids[row, end + 1 :] = 0
    return ids


def timm_vit(**kw: Any) -> nn.Module:
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
    return timm.models.vision_transformer.VisionTransformer(**settings).eval()


def distilled_vit() -> nn.Module:
    torch.manual_seed(0)
    cls = timm.models.deit.VisionTransformerDistilled
    return cls(img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5).eval()


def clip(attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config=_VISION,
        text_config={**_TEXT, "eos_token_id": EOS, "bos_token_id": 98, "pad_token_id": 0},
        projection_dim=16,
    )
    config._attn_implementation = attention
    return CLIPModel(config).eval()


def siglip(attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    config = SiglipConfig(vision_config=_VISION, text_config={**_TEXT, "projection_size": 32})
    config._attn_implementation = attention
    return SiglipModel(config).eval()


def hf_vit() -> nn.Module:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**_VISION, num_labels=5)).eval()


def dinov2() -> nn.Module:
    torch.manual_seed(0)
    return Dinov2ForImageClassification(
        Dinov2Config(**{**_VISION, "mlp_ratio": 2}, num_labels=5)
    ).eval()


MODELS: dict[str, Any] = {
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


def inputs(model: nn.Module, batch: int = 2) -> dict[str, torch.Tensor]:
    """Keyword arguments for `run`."""
    torch.manual_seed(1)
    made = {"pixel_values": images(batch)}
    if hasattr(model, "text_model"):
        made["input_ids"] = token_ids(batch)
    return made


def run(model: nn.Module, kw: dict[str, torch.Tensor]) -> torch.Tensor:
    """One tensor that depends on everything the model computes."""
    if "timm" in type(model).__module__:
        return model(kw["pixel_values"])
    out = model(**kw)
    if hasattr(out, "image_embeds"):
        return torch.cat([out.image_embeds.flatten(1), out.text_embeds.flatten(1)], 1)
    return out.logits
