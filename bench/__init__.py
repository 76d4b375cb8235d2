"""Benchmark of token reduction in vision and vision-language Transformers.

The public interface is loaded on first use, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bench.core import registry
from bench.core.errors import BenchError, Unsupported

if TYPE_CHECKING:
    from bench.engine.families import adapter_for
    from bench.engine.families.guide import TextGuide
    from bench.engine.reduce import reduced
    from bench.engine.tracing import trace
    from bench.measure.macs import count_macs
    from bench.runs import budgets

_LAZY = {
    "TextGuide": "bench.engine.families.guide",
    "adapter_for": "bench.engine.families",
    "count_macs": "bench.measure.macs",
    "reduced": "bench.engine.reduce",
    "trace": "bench.engine.tracing",
}

__all__ = [
    "BenchError",
    "TextGuide",
    "Unsupported",
    "adapter_for",
    "budgets",
    "count_macs",
    "list_methods",
    "reduced",
    "trace",
]
__version__ = "0.1.0"


def list_methods() -> list[str]:
    """Return the names of all registered methods, `none` first."""
    return list(registry.methods())


def __getattr__(name: str) -> Any:
    if name == "budgets":
        return importlib.import_module("bench.runs.budgets")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'bench' has no attribute '{name}'")
