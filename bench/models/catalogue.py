"""Models by name: what to type, how it is loaded, and where its weights come from.

Names: `embedded:vit-fashion` (trained here, in the repository), `timm:deit_small_patch16_224`,
`timm:NAME@FILE` (weights from a file), a Hugging Face id such as `openai/clip-vit-base-patch16`
(`hf:` in front is optional), or a folder written by `save_pretrained`. With random weights nothing
is downloaded: cost columns need shapes only.

    bench.models.load("timm:vit_tiny_patch16_224", random_weights=True).model
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from bench.models.names import listing as listing
from bench.models.names import source_of

if TYPE_CHECKING:
    import torch

    from bench.models.loaded import Loaded


def load(
    name: str,
    *,
    random_weights: bool = False,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
    backend: str = "sdpa",
    seed: int = 0,
) -> Loaded:
    """Return the model called `name`, in eval mode.

    Args:
        name: see the module's first lines.
        random_weights: build from the shape alone, with weights drawn from `seed`.
        device: "cpu" or "cuda".
        dtype: "float32", "bfloat16", "float16" or a torch dtype.
        backend: attention backend, "sdpa" or "eager".
        seed: of random weights.

    Raises:
        BenchError: unknown name, weights that are missing, broken or out of reach, or a model that
            no adapter covers; the message names the fix.
    """
    return source_of(name).load(random_weights, device, dtype, backend, seed)


def check_name(name: str, random_weights: bool = False) -> None:
    """Raise BenchError when no model can be meant by `name`; looks at no weights."""
    source_of(name).check(random_weights)


def fingerprint(name: str, *, random_weights: bool = False, seed: int = 0) -> str | None:
    """Return the sha256 of the weights without loading them, or None when only `load` can tell.

    Raises:
        BenchError: a weights file is missing or truncated.
    """
    if random_weights:
        return hashlib.sha256(f"random {name} {seed}".encode()).hexdigest()
    return source_of(name).fingerprint()


def type_of(name: str) -> str:
    """Return the model type in a Hugging Face configuration, "" where there is none here."""
    return source_of(name).model_type()


def learned(name: str) -> dict[str, Path]:
    """Return the files with what methods learned with this model (none for most), by method."""
    return source_of(name).learned()
