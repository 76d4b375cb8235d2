"""Low-rank adapters (Hu et al., ICLR 2022, §4.1): W + B A in place of W.

peft trains them. A fine-tuned model is then a small file beside the model that it started from,
whose tensors are LAYER.lora_a (rank,in) and LAYER.lora_b (out,rank), in half precision.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError

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
    sizes: dict[str, tuple[int, ...]] = {}
    for name, layer in adapted(model).items():
        sizes[name + A] = (rank, layer.in_features)
        sizes[name + B] = (layer.out_features, rank)
    return sizes


def attach(model: nn.Module, rank: int, seed: int) -> None:
    """Freeze `model` and give it adapters to be trained, which begin as the identity.

    Raises:
        BenchError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise BenchError("adapters are trained by peft: pip install peft") from error
    names = "|".join(map(re.escape, adapted(model)))
    torch.manual_seed(seed)  # loading the model may have seeded torch as well
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), model)


def factors(model: nn.Module) -> dict[str, Tensor]:
    """Return a file's tensors for a model with adapters attached."""
    parts = {".lora_A.default.weight": A, ".lora_B.default.weight": B}
    return {
        name.removesuffix(ending) + part: parameter.detach().half().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for ending, part in parts.items()
        if name.endswith(ending)
    }


@torch.no_grad()
def fold(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Add the products of a file's tensors to the weights of `model`."""
    for key, a in tensors.items():
        if key.endswith(A):
            layer: Any = model.get_submodule(key.removesuffix(A))
            b = tensors[key.removesuffix(A) + B]
            layer.weight += (b.float() @ a.float()).to(layer.weight)
