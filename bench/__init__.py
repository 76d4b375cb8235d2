"""Benchmark of token reduction in vision and vision-language Transformers.

The public interface is loaded on first use, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, Unsupported

if TYPE_CHECKING:
    from bench.adapters import adapter_for
    from bench.measure.macs import count_macs
    from bench.reduce import reduced
    from bench.tracing import trace

_LAZY = {
    "adapter_for": "bench.adapters",
    "count_macs": "bench.measure.macs",
    "reduced": "bench.reduce",
    "trace": "bench.tracing",
}

__all__ = [
    "BenchError",
    "Unsupported",
    "adapter_for",
    "count_macs",
    "list_methods",
    "reduced",
    "trace",
]
__version__ = "0.1.0"


def list_methods() -> list[str]:
    """Names of all registered methods, `none` first."""
    from bench.registry import methods

    return list(methods())


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'bench' has no attribute '{name}'")
