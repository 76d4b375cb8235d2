"""Models by their shape alone, on PyTorch's meta device, where tensors have no values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from bench.models import catalogue, joint
from bench.models.loaded import Loaded
from bench.models.multimodal import WORDS, asked

DTYPE = "bfloat16"


def on_meta(name: str, dtype: str = DTYPE) -> Loaded:
    """Return a model without values, by its shape."""
    with torch.device("meta"):
        return catalogue.load(name, random_weights=True, device="meta", dtype=dtype)


@contextlib.contextmanager
def prompted(loaded: Loaded, words: int | None = None) -> Iterator[dict[str, Any]]:
    """Give the inputs of one example for a model without values; `words` beside its image."""
    with contextlib.ExitStack() as stack:
        if loaded.kind == "multimodal":
            yield stack.enter_context(asked(loaded.model, WORDS if words is None else words))
            return
        if loaded.covers:
            stack.enter_context(joint.on_meta(loaded.model))
        yield loaded.example_inputs(1)
