"""Tiny models of the real classes with seeded weights, built from configs: no download."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
VISION = {**SMALL, "num_hidden_layers": 4, "image_size": 32, "patch_size": 4}
EOS = 99
_WORDS = {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": EOS}
_TEXT = {**SMALL, **_WORDS, "max_position_embeddings": 14}


def images(batch: int = 2, size: int = 32) -> Tensor:
    """(B,3,H,W) noise with structure: neighbouring patches are alike, as in pictures."""
    coarse = torch.randn(batch, 3, size // 8, size // 8)
    noise = torch.randn(batch, 3, size, size)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") + 0.3 * noise


def token_ids(batch: int = 2, length: int = 14) -> Tensor:
    """(B,N) random words with the end of text at a different place in each row, then padding."""
    ids = torch.randint(1, 90, (batch, length))
    for row in range(batch):
        end = length - 1 - 2 * (row % 3)
        ids[row, end] = EOS
        ids[row, end + 1 :] = 0
    return ids


def timm_vit(cls: Any = VisionTransformer, **kw: Any) -> Any:
    """A timm VisionTransformer, or another class of its kind, 64 patches and a class token."""
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
    return cls(**{**shape, "num_classes": 5, **kw}).eval()


def eva(**kw: Any) -> Any:
    """A timm Eva as DINOv3 is one: rotary embedding, registers, gains, average pooling."""
    shape = {"num_reg_tokens": 2, "use_abs_pos_emb": False, "qkv_bias": False, "init_values": 0.5}
    rope = {"use_rot_pos_emb": True, "rope_type": "dinov3", "rope_rotate_half": True}
    return timm_vit(Eva, **{**shape, **rope, "head_init_scale": 0, **kw})


def beit(**kw: Any) -> Any:
    """A timm Beit with a bias of each block's own, and average pooling."""
    shape = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.5}
    return varied(timm_vit(Beit, **{**shape, "head_init_scale": 0, **kw}))


@torch.no_grad()
def varied(model: Any) -> Any:
    """The same model, noise added to each parameter whose values are all alike, as in training."""
    for parameter in model.parameters():
        if parameter.unique().numel() == 1:
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def clip(attention: str = "sdpa", text_layers: int = 3) -> Any:
    """Hugging Face CLIP, both towers."""
    torch.manual_seed(0)
    text = {**_TEXT, "num_hidden_layers": text_layers, "pad_token_id": 0}
    config = CLIPConfig(vision_config=VISION, text_config=text, projection_dim=16)
    config._attn_implementation = attention
    return CLIPModel(config).eval()


def siglip(attention: str = "sdpa", text_layers: int = 3) -> Any:
    """Hugging Face SigLIP, both towers."""
    torch.manual_seed(0)
    text = {**_TEXT, "num_hidden_layers": text_layers, "projection_size": 32}
    config = SiglipConfig(vision_config=VISION, text_config=text)
    config._attn_implementation = attention
    return SiglipModel(config).eval()


def hf_vit() -> Any:
    """Hugging Face ViT with a classifier."""
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**VISION, num_labels=5)).eval()


def dinov2() -> Any:
    """Hugging Face DINOv2 with a classifier, which reads the mean of all positions."""
    torch.manual_seed(0)
    config = Dinov2Config(**{**VISION, "mlp_ratio": 2}, num_labels=5)
    return Dinov2ForImageClassification(config).eval()


def dinov2_registers(attention: str = "sdpa") -> Any:
    """Hugging Face DINOv2 with registers, and a classifier that reads the mean of all patches."""
    torch.manual_seed(0)
    shape = {**VISION, "mlp_ratio": 2, "num_register_tokens": 2}
    config = Dinov2WithRegistersConfig(**shape, num_labels=5, attn_implementation=attention)
    return Dinov2WithRegistersForImageClassification(config).eval()


def dinov3(attention: str = "sdpa", **kw: Any) -> Any:
    """Hugging Face DINOv3, whose class token is read."""
    torch.manual_seed(0)
    shape = {"num_register_tokens": 2, "use_gated_mlp": True, "layerscale_value": 0.5, **kw}
    config = DINOv3ViTConfig(**VISION, **shape, attn_implementation=attention)
    return DINOv3ViTModel(config).eval()


def deit(cls: Any = DeiTForImageClassificationWithTeacher) -> Any:
    """Hugging Face DeiT, whose class token and distillation token are read."""
    torch.manual_seed(0)
    return varied(cls(DeiTConfig(**VISION, num_labels=5)).eval())


def hf_beit(attention: str = "sdpa", **kw: Any) -> Any:
    """Hugging Face BEiT with a classifier, which reads the mean of all patches."""
    torch.manual_seed(0)
    shape = {**VISION, "use_relative_position_bias": True, "layer_scale_init_value": 0.5, **kw}
    config = BeitConfig(**shape, num_labels=5, attn_implementation=attention)
    return varied(BeitForImageClassification(config).eval())
