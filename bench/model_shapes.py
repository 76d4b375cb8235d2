"""Shapes of well-known Hugging Face models, so that their cost can be measured without a hub.

Only what differs from the configuration class's defaults is written down. Needs no torch.
"""

from __future__ import annotations

from typing import Any

_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_SO400M = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16}


def _mlp(width: dict[str, int], ratio: int = 4) -> dict[str, int]:
    return {**width, "intermediate_size": ratio * width["hidden_size"]}


def _clip(vision: dict[str, int], image: int, patch: int, text: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "clip",
        "projection_dim": text,
        "vision_config": {**_mlp(vision), "image_size": image, "patch_size": patch},
        "text_config": {
            "hidden_size": text,
            "intermediate_size": 4 * text,
            "num_attention_heads": heads,
            "num_hidden_layers": 12,
        },
    }


def _siglip(tower: dict[str, int], image: int, patch: int, **more: int) -> dict[str, Any]:
    vision = {**_mlp(tower), **more, "image_size": image, "patch_size": patch}
    return {
        "model_type": "siglip",
        "vision_config": vision,
        "text_config": {**_mlp(tower), **more, "vocab_size": 32000, "max_position_embeddings": 64},
    }


def _vit(width: dict[str, int], image: int, patch: int) -> dict[str, Any]:
    shape = {**_mlp(width), "image_size": image, "patch_size": patch}
    return {"model_type": "vit", "architectures": ["ViTForImageClassification"], **shape}


def _dinov2(width: dict[str, int]) -> dict[str, Any]:
    return {"model_type": "dinov2", "image_size": 518, "patch_size": 14, **width}


SHAPES: dict[str, dict[str, Any]] = {
    "clip-vit-base-patch32": _clip(_BASE, 224, 32, 512, 8),
    "clip-vit-base-patch16": _clip(_BASE, 224, 16, 512, 8),
    "clip-vit-large-patch14": _clip(_LARGE, 224, 14, 768, 12),
    "clip-vit-large-patch14-336": _clip(_LARGE, 336, 14, 768, 12),
    "siglip-base-patch16-224": _siglip(_BASE, 224, 16),
    "siglip-base-patch16-256": _siglip(_BASE, 256, 16),
    "siglip-base-patch16-384": _siglip(_BASE, 384, 16),
    "siglip-large-patch16-256": _siglip(_LARGE, 256, 16),
    "siglip-so400m-patch14-384": _siglip(_SO400M, 384, 14, intermediate_size=4304),
    "vit-base-patch16-224": _vit(_BASE, 224, 16),
    "vit-base-patch16-384": _vit(_BASE, 384, 16),
    "vit-large-patch16-224": _vit(_LARGE, 224, 16),
    "dinov2-small": _dinov2(_SMALL),
    "dinov2-base": _dinov2(_BASE),
    "dinov2-large": _dinov2(_LARGE),
}


def shape(name: str) -> dict[str, Any] | None:
    """Return the configuration of `ORG/NAME` or `NAME`, or None when it is not in the table."""
    return SHAPES.get(name.rsplit("/", 1)[-1].lower())
