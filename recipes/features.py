"""Features of a frozen network, kept chunk by chunk, so that a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def in_chunks(count: int, size: int, folder: Path, compute: Callable[[slice], Tensor]) -> Tensor:
    """Return what `compute` gives for each slice of `count` images, end to end.

    A chunk of `size` images that `folder` has already is read, not computed.
    """
    from rich.progress import track

    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in track(range(0, count, size), description=f"features in {folder.name}"):
        path = folder / f"{start:05d}.pt"
        if not path.exists():
            partial = path.with_suffix(".partial")
            torch.save(compute(slice(start, start + size)), partial)
            partial.replace(path)
        parts.append(torch.load(path, weights_only=True))
    return torch.cat(parts)
