"""Low-rank adapters in a file: W + B A for each linear layer (Hu et al., ICLR 2022, §4.1).

`NAME.lora_a` is A (rank,in) and `NAME.lora_b` B (out,rank) of the layer NAME.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

A, B = ".lora_a", ".lora_b"


def layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that have an adapter, by name: the linear ones."""
    from torch import nn

    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def shapes(model: nn.Module, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file of adapters for `model`, by name."""
    factors: dict[str, tuple[int, ...]] = {}
    for name, layer in layers(model).items():
        factors[name + A] = (rank, layer.in_features)
        factors[name + B] = (layer.out_features, rank)
    return factors


def fold(model: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Add the products of a file's factors to the weights of `model`."""
    import torch

    with torch.no_grad():
        for key, a in factors.items():
            if key.endswith(A):
                layer: Any = model.get_submodule(key.removesuffix(A))
                b = factors[key.removesuffix(A) + B]
                layer.weight += (b.float() @ a.float()).to(layer.weight)
