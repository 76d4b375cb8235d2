"""Low-rank adapters (Hu et al., ICLR 2022, §4.1) in a file: W + B A in place of W.

A fine-tuned model is then a small file beside the model that it started from. Its tensors are
LAYER.lora_a (rank,in) and LAYER.lora_b (out,rank), in half precision, for each linear layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

A, B = ".lora_a", ".lora_b"


def adapted(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers that get an adapter, by name.

    Those that share their weight with another layer get none: it would change the other one too.
    """
    weights = [getattr(module, "weight", None) for module in model.modules()]
    holders = Counter(id(weight) for weight in weights if weight is not None)
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and holders[id(layer.weight)] == 1
    }


def shapes(model: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors for `model`, by name."""
    factors: dict[str, tuple[int, ...]] = {}
    for name, layer in adapted(model).items():
        factors[name + A] = (rank, layer.in_features)
        factors[name + B] = (layer.out_features, rank)
    return factors


@torch.no_grad()
def fold(model: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Add the products of a file's tensors to the weights of `model`."""
    for key, a in factors.items():
        if key.endswith(A):
            layer: Any = model.get_submodule(key.removesuffix(A))
            b = factors[key.removesuffix(A) + B]
            layer.weight += (b.float() @ a.float()).to(layer.weight)
