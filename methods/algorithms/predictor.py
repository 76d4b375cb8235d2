"""DynamicViT's predictor: a small network over all tokens, which scores each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]
LAYERS = ("in_conv.1", "out_conv.0", "out_conv.2", "out_conv.4")


def keep_scores(x_BNC: Tensor, weights: Weights, policy_BN1: Tensor | None = None) -> Tensor:
    """(B,N,C) tokens -> (B,N,2) log-probabilities of keeping and dropping each.

    Args:
        x_BNC: tokens without the class token.
        weights: of the predictor, under the authors' names.
        policy_BN1: 1 for tokens, 0 for empty slots, which say nothing to the others.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x))

    scale, shift = (weights[f"in_conv.0.{name}"].to(x_BNC) for name in ("weight", "bias"))
    x = F.gelu(linear(F.layer_norm(x_BNC, x_BNC.shape[-1:], scale, shift), LAYERS[0]))
    local, shared = x.chunk(2, -1)
    policy = torch.ones_like(x[..., :1]) if policy_BN1 is None else policy_BN1.to(x)
    mean = (shared * policy).sum(1, keepdim=True) / policy.sum(1, keepdim=True)
    x = torch.cat([local, mean.expand_as(shared)], -1)
    for name in LAYERS[1:-1]:
        x = F.gelu(linear(x, name))
    return linear(x, LAYERS[-1]).log_softmax(-1)


def new_predictor(width: int, seed: int = 0) -> dict[str, Tensor]:
    """An untrained predictor for tokens of `width` channels."""
    rng = torch.Generator().manual_seed(seed)
    widths = [(width, width), (width // 2, width), (width // 4, width // 2), (2, width // 4)]
    weights = {"in_conv.0.weight": torch.ones(width), "in_conv.0.bias": torch.zeros(width)}
    for name, (out, into) in zip(LAYERS, widths, strict=True):
        weights[f"{name}.weight"] = torch.randn(out, into, generator=rng) * into**-0.5
        weights[f"{name}.bias"] = torch.zeros(out)
    return weights
