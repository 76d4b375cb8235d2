"""The compression rates that DiffRate's authors learned and published."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

from bench.core import BenchError, near_miss


@functools.cache
def _published() -> dict[str, Any]:
    text = files("bench.assets.data").joinpath("diffrate.json").read_text(encoding="utf-8")
    rates: dict[str, Any] = json.loads(text)["rates"]
    return rates


def published_rates(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens pruned at each block, and removed in all, by the published schedule of that name.

    Raises:
        BenchError: there is none.
    """
    if name not in _published():
        raise BenchError(f"diffrate has no rates '{name}'{near_miss(name, _published())}")
    pruned, removed = [], []
    kept = _published()[name]
    n = kept["prune_kept"][0]  # the first block keeps all
    for after_pruning, after_merging in zip(kept["prune_kept"], kept["merge_kept"], strict=True):
        unpruned = min(n, after_pruning)
        pruned.append(n - unpruned)
        removed.append(n - min(unpruned, after_merging))
        n -= removed[-1]
    return tuple(pruned), tuple(removed)
