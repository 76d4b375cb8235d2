"""Models by their shape alone, on PyTorch's meta device, where tensors have no values."""

from __future__ import annotations

import torch

from bench.models import catalogue
from bench.models.loaded import Loaded

DTYPE = "bfloat16"


def on_meta(name: str, dtype: str = DTYPE) -> Loaded:
    """Return a model without values, by its shape."""
    with torch.device("meta"):
        return catalogue.load(name, random_weights=True, device="meta", dtype=dtype)
