"""The kit's tiny models, and one way to run them all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import RmsNorm
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from timm.models.vision_transformer_relpos import ResPostRelPosBlock, VisionTransformerRelPos
from torch import nn
from transformers import DeiTForImageClassification

from bench.check.models import (
    EOS,
    beit,
    clip,
    deit,
    dinov2,
    dinov2_registers,
    dinov3,
    eva,
    hf_beit,
    hf_vit,
    images,
    siglip,
    timm_vit,
    token_ids,
    varied,
)

__all__ = [
    "EOS",
    "MODELS",
    "TIMM",
    "beit",
    "clip",
    "deit",
    "dinov2",
    "dinov3",
    "eva",
    "hf_beit",
    "hf_vit",
    "images",
    "inputs",
    "run",
    "siglip",
    "timm_vit",
    "token_ids",
]

# Of timm's plain vision transformers what differs around and inside of the blocks.
TIMM: dict[str, Callable[..., Any]] = {
    "timm": timm_vit,
    "timm-map": partial(
        timm_vit, class_token=False, global_pool="map", qk_norm=True, scale_attn_norm=True
    ),
    "timm-post-norm": partial(timm_vit, block_fn=ResPostBlock, init_values=0.5),
    "timm-parallel": partial(timm_vit, block_fn=ParallelScalingBlock, qk_norm=True),
    "timm-twins": partial(timm_vit, block_fn=ParallelThingsBlock, num_heads=1, init_values=0.5),
    "eva": eva,
    "eva02": lambda **kw: varied(
        timm_vit(
            Eva,
            **{
                "swiglu_mlp": True,
                "scale_mlp": True,
                "scale_attn_inner": True,
                "qkv_fused": False,
                "use_rot_pos_emb": True,
                "ref_feat_shape": (14, 14),
                "head_init_scale": 0,
                **kw,
            },
        )
    ),
    "eva-mixed": partial(
        eva, rope_type="mixed", attn_type="rope", rope_rotate_half=False, global_pool="token"
    ),
    "eva-pe": partial(
        eva,
        rope_type="cat",
        attn_type="rope",
        rope_rotate_half=False,
        num_reg_tokens=0,
        use_abs_pos_emb=True,
        use_pre_transformer_norm=True,
        global_pool="map",
    ),
    "eva-grouped": partial(
        eva,
        attn_type="rope",
        qkv_fused=False,
        num_kv_heads=1,
        qk_norm=True,
        norm_layer=RmsNorm,
        global_pool="token",
    ),
    "eva-post-norm": partial(
        timm_vit, Eva, use_post_norm=True, head_init_scale=0, global_pool="token"
    ),
    "beit": beit,
    "beit-shared": lambda **kw: varied(
        timm_vit(
            Beit,
            use_shared_rel_pos_bias=True,
            qkv_bias=True,
            global_pool="token",
            head_init_scale=0,
            **kw,
        )
    ),
    "relpos": partial(timm_vit, VisionTransformerRelPos, init_values=0.5, rel_pos_dim=16),
    "relpos-class": partial(
        timm_vit,
        VisionTransformerRelPos,
        init_values=0.5,
        rel_pos_type="bias",
        class_token=True,
        block_fn=ResPostRelPosBlock,
        global_pool="token",
    ),
}
MODELS: dict[str, Callable[[], Any]] = {
    **TIMM,
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
    "dinov2-registers": dinov2_registers,
    "dinov3": dinov3,
    "dinov3-eager": partial(dinov3, "eager"),
    "deit": partial(deit, DeiTForImageClassification),
    "deit-teacher": deit,
    "hf-beit": hf_beit,
    "hf-beit-shared": partial(
        hf_beit,
        "eager",
        use_relative_position_bias=False,
        use_shared_relative_position_bias=True,
        use_absolute_position_embeddings=True,
        use_mean_pooling=False,
    ),
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
    return out.logits if "logits" in out else out.pooler_output
