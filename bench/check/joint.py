"""Tiny models in which words and an image meet, BLIP and ViLT, and what goes into them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipConfig, ViltConfig

from bench.check.models import SMALL, VISION, images

PATCHES = 64
START, END, PAD, WORDS = 59, 2, 0, 60


def blip(cls: Any, text_layers: int = 3, vision_layers: int = 4) -> Any:
    """BLIP with the head `cls`; the text layers are those of its encoder and of its decoder."""
    torch.manual_seed(0)
    text = {
        **SMALL,
        "num_hidden_layers": text_layers,
        "encoder_hidden_size": 32,
        "vocab_size": WORDS,
        "max_position_embeddings": 40,
        "bos_token_id": START,
        "eos_token_id": END,
        "sep_token_id": END,
        "pad_token_id": PAD,
    }
    vision = {**VISION, "num_hidden_layers": vision_layers}
    shape = {"vision_config": vision, "text_config": text, "image_text_hidden_size": 16}
    return _spread(cls(BlipConfig(**shape)))


def vilt(cls: Any, **kw: Any) -> Any:
    """ViLT with the head `cls`."""
    torch.manual_seed(0)
    shape = {**VISION, "vocab_size": WORDS, "max_position_embeddings": 16, "pad_token_id": PAD}
    return _spread(cls(ViltConfig(**shape, **kw)))


def _spread(model: Any) -> Any:
    """Make inputs differ inside of the model, which they hardly do with weights as drawn.

    BERT's blocks end in a norm: with weights of one it would make all tokens equally long.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.25)
    return model.eval()


def texts(batch: int = 3, length: int = 9, shorter: int = 2) -> dict[str, Tensor]:
    """Random words, each row two shorter than the one before, padded on the right."""
    ids = torch.randint(3, START, (batch, length))
    for row in range(batch):
        ids[row, length - 1 - shorter * row] = END
        ids[row, length - shorter * row :] = PAD
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def inputs(model: Any, batch: int = 3, length: int = 9, shorter: int = 2) -> dict[str, Tensor]:
    """Arguments of the model's forward pass."""
    name, made = type(model).__name__, {"pixel_values": images(batch)}
    made |= texts(batch, length, shorter)
    if name == "BlipForQuestionAnswering":
        made["decoder_input_ids"] = torch.full((batch, 1), START)
    if name == "ViltForImagesAndTextClassification":
        made["pixel_values"] = torch.stack([made["pixel_values"], images(batch)], 1)
    return made
