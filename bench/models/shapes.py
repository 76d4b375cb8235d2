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


# Below the language models that see. Their vocabularies are rounded up, as in the hub's weights.
_CLIP_336 = {
    "model_type": "clip_vision_model",
    **_mlp(_LARGE),
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


def _llama(width: int, mlp: int, depth: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 128,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
    }


def _llava(kind: str, text: dict[str, Any]) -> dict[str, Any]:
    image = {"image_token_id": 32000, "vision_feature_layer": -2}
    return {"model_type": kind, "vision_config": _CLIP_336, "text_config": text, **image}


_QWEN2_VL_7B = {
    "model_type": "qwen2_vl",
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "num_heads": 16,
        "patch_size": 14,
    },
    "text_config": {
        "model_type": "qwen2_vl_text",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    },
}
_BLIP2_OPT_2_7B = {
    "model_type": "blip-2",
    "vision_config": {
        "hidden_size": 1408,
        "intermediate_size": 6144,
        "num_hidden_layers": 39,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
    "qformer_config": {"encoder_hidden_size": 1408},
    "text_config": {
        "model_type": "opt",
        "hidden_size": 2560,
        "word_embed_proj_dim": 2560,
        "ffn_dim": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 50304,
    },
    "num_query_tokens": 32,
    "image_token_index": 50265,
}


def _blip(head: str, image: int = 384) -> dict[str, Any]:
    text = {"num_attention_heads": 12}  # the rest of BERT-base is the default
    return {
        "model_type": "blip",
        "architectures": [head],
        "vision_config": {"image_size": image},
        "text_config": text,
    }


def _vilt(head: str, **more: Any) -> dict[str, Any]:
    return {"model_type": "vilt", "architectures": [head], **more}


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
    "llava-1.5-7b-hf": _llava("llava", _llama(4096, 11008, 32)),
    "llava-1.5-13b-hf": _llava("llava", _llama(5120, 13824, 40)),
    "llava-v1.6-vicuna-7b-hf": _llava("llava_next", _llama(4096, 11008, 32)),
    "qwen2-vl-7b-instruct": _QWEN2_VL_7B,
    "blip2-opt-2.7b": _BLIP2_OPT_2_7B,
    "blip-itm-base-coco": _blip("BlipForImageTextRetrieval"),
    "blip-vqa-base": _blip("BlipForQuestionAnswering"),
    "blip-image-captioning-base": _blip("BlipForConditionalGeneration"),
    "vilt-b32-finetuned-vqa": _vilt("ViltForQuestionAnswering", num_labels=3129),
    "vilt-b32-finetuned-nlvr2": _vilt(
        "ViltForImagesAndTextClassification",
        num_labels=2,
        num_images=2,
        modality_type_vocab_size=3,
    ),
}


def shape(name: str) -> dict[str, Any] | None:
    """Return the configuration of `ORG/NAME` or `NAME`, or None when it is not in the table."""
    return SHAPES.get(name.rsplit("/", 1)[-1].lower())
