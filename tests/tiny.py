"""The kit's tiny models, and one way to run them all."""

from __future__ import annotations

import torch
from torch import nn

from bench.check.models import (
    EOS,
    MODELS,
    clip,
    dinov2,
    distilled_vit,
    hf_vit,
    images,
    siglip,
    timm_vit,
    token_ids,
)

__all__ = [
    "EOS",
    "MODELS",
    "clip",
    "dinov2",
    "distilled_vit",
    "hf_vit",
    "images",
    "inputs",
    "run",
    "siglip",
    "timm_vit",
    "token_ids",
]


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
