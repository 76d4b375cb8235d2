"""PyTorch's global settings, which are the program's and no method's: read, and put back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.backends import cuda

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
BACKENDS: Any = torch.backends
PRODUCTS = (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul)


def _attribute(owner: Any, name: str) -> Setting:
    return partial(getattr, owner, name), partial(setattr, owner, name)


def _precision() -> list[str]:
    """How products of float32 are computed: by its old name, and on each backend."""
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # the program uses the new names, and PyTorch refuses to mix them
        old = ""
    return [old, *(products.fp32_precision for products in PRODUCTS)]


def _set_precision(value: list[str]) -> None:
    old, *new = value
    for sets_old in (False, bool(old)):  # the old name sets the new ones too
        if sets_old:
            torch.set_float32_matmul_precision(old)
        for products, precision in zip(PRODUCTS, new, strict=True):
            products.fp32_precision = precision


SETTINGS: dict[str, Setting] = {
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "TF32": _attribute(BACKENDS, "fp32_precision"),
    "TF32 in products": (_precision, _set_precision),
    "TF32 in convolutions": _attribute(BACKENDS.cudnn.conv, "fp32_precision"),
    "cuDNN benchmark": _attribute(BACKENDS.cudnn, "benchmark"),
    "cuDNN": _attribute(BACKENDS.cudnn, "enabled"),
    "oneDNN": _attribute(BACKENDS.mkldnn, "enabled"),
    "flash attention": (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    "memory-efficient attention": (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    "plain attention": (cuda.math_sdp_enabled, cuda.enable_math_sdp),
}


@contextlib.contextmanager
def kept_settings() -> Iterator[Callable[[], str]]:
    """Put the settings back afterwards; yields what names one that has been changed, or ""."""
    before = {name: read() for name, (read, _) in SETTINGS.items()}

    def changed() -> str:
        return next((name for name, value in before.items() if SETTINGS[name][0]() != value), "")

    try:
        yield changed
    finally:
        for name, (read, write) in SETTINGS.items():
            if read() != before[name]:
                write(before[name])
