"""Shapes of well-known Hugging Face models, so that their cost can be measured without a hub.

They are written in bench/assets/data/shapes.yaml; a new one needs a few lines there. No torch.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

import yaml

from bench.core.errors import BenchError


@functools.cache
def shapes() -> dict[str, dict[str, Any]]:
    """Return the configuration of each model, by its name; a key that starts with a dot is a part.

    Raises:
        BenchError: an entry of the file names no model type.
    """
    text = (files("bench.assets.data") / "shapes.yaml").read_text(encoding="utf-8")
    entries = {k: v for k, v in yaml.safe_load(text).items() if not k.startswith(".")}
    for name, config in entries.items():
        if not isinstance(config.get("model_type"), str):
            raise BenchError(f"{name} in bench/assets/data/shapes.yaml names no model_type")
    return entries


def shape(name: str) -> dict[str, Any] | None:
    """Return the configuration of `ORG/NAME` or `NAME`, or None when it is not in the table."""
    return shapes().get(name.rsplit("/", 1)[-1].lower())
