"""The kit's tiny models, and one way to run them all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from bench.check.models import EOS, clip, dinov2, hf_vit, images, siglip, timm_vit, token_ids

__all__ = [
    "EOS",
    "MODELS",
    "clip",
    "dinov2",
    "hf_vit",
    "images",
    "inputs",
    "run",
    "siglip",
    "timm_vit",
    "token_ids",
]

MODELS: dict[str, Callable[[], Any]] = {
    "timm": timm_vit,
    "timm-avg-qknorm-ls": partial(
        timm_vit, global_pool="avg", qk_norm=True, init_values=0.1, class_token=False, fc_norm=True
    ),
    "timm-registers": partial(timm_vit, reg_tokens=4),
    "timm-distilled": partial(timm_vit, VisionTransformerDistilled),
    "clip": clip,
    "clip-eager": partial(clip, "eager"),
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
