"""A timm VisionTransformer whose head reads the class tokens of several blocks."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class LastClassTokens(VisionTransformer):  # type: ignore[misc]
    """A ViT whose head reads the class tokens of the last blocks, side by side, each normalised.

    Source: DINO (Caron et al. 2021), whose linear evaluation of a ViT-S reads the last four.
    """

    def __init__(self, layers: int, **shape: Any) -> None:
        """Take the class tokens of so many blocks; the rest is as in timm."""
        super().__init__(**shape)
        self.layers = layers
        self.head = nn.Linear(layers * self.embed_dim, self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's outputs (B,classes) for images (B,C,H,W)."""
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        first = len(self.blocks) - self.layers
        tokens = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i >= first:
                tokens.append(self.norm(x[:, 0]))
        features: Tensor = self.head(torch.cat(tokens, dim=-1))
        return features
