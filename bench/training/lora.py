"""Low-rank adapters (Hu et al., ICLR 2022, §4.1): learn W + B A instead of W.

A fine-tuned model is then a small file beside the model it came from. The matrices are parametrised
in place and folded back into plain weights, so nothing downstream knows of adapters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.models.sources.tuned import A, B, linear_layers


class LowRank(nn.Module):
    """W (out,in) -> W + B A with A (rank,in) random and B (out,rank) zero at first."""

    def __init__(self, weight: Tensor, rank: int, rng: torch.Generator) -> None:
        """Start as the identity."""
        super().__init__()
        out, width = weight.shape
        self.a = nn.Parameter(torch.randn(rank, width, generator=rng) * width**-0.5)
        self.b = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """(out,in) -> (out,in)."""
        return weight + self.b @ self.a


def attach(model: nn.Module, rank: int, seed: int = 0) -> None:
    """Freeze `model` and give each linear layer of it an adapter."""
    model.requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for layer in linear_layers(model).values():
        adapter = LowRank(layer.weight, rank, rng).to(layer.weight.device)
        parametrize.register_parametrization(layer, "weight", adapter, unsafe=True)


def detach(model: nn.Module) -> dict[str, Tensor]:
    """Take the adapters off again, leaving the weights as they were; return the factors by name."""
    factors: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        found: Any = getattr(layer, "parametrizations", None)
        if found is not None and "weight" in found:
            adapter = found.weight[0]
            factors[name + A] = adapter.a.detach().half().cpu()
            factors[name + B] = adapter.b.detach().half().cpu()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return factors
