"""Run by `test_walls.py` in its own process: import the whole project, see what that changed.

    python tests/global_state.py THIRD_PARTY_MODULE...

The third-party modules are imported first: their side effects are not this project's.
"""

from __future__ import annotations

import importlib
import locale
import logging
import os
import pkgutil
import random
import signal
import sys
import threading
import warnings
from typing import Any

PACKAGES = ("bench", "crossget", "methods")
MODEL_CODE = ("timm.models.vision_transformer", "transformers.models.clip.modeling_clip")


def torch_flags() -> tuple[Any, ...]:
    import torch

    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
    )


def functions() -> dict[str, int]:
    """Identity of every function that a patch might replace."""
    import torch.nn.functional
    from torch import nn

    owners = [torch.nn.functional, nn.Module, nn.Linear, nn.MultiheadAttention]
    for name in MODEL_CODE:
        owners += [c for c in vars(importlib.import_module(name)).values() if isinstance(c, type)]
    return {f"{o}.{k}": id(v) for o in owners for k, v in vars(o).items() if callable(v)}


def snapshot() -> dict[str, Any]:
    import matplotlib
    import numpy
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return {
        "environment": dict(os.environ),
        "random states": (
            torch.get_rng_state().tolist(),
            repr(numpy.random.get_state()),
            random.getstate(),
        ),
        "torch flags": torch_flags(),
        "functions": functions(),
        "attention functions": sorted(ALL_ATTENTION_FUNCTIONS.keys()),
        "warning filters": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "matplotlib": dict(matplotlib.rcParams),
        "locale": locale.setlocale(locale.LC_ALL),
        "path": (list(sys.path), os.getcwd()),
        "threads": threading.active_count(),
    }


def main() -> None:
    sys.path.insert(0, os.getcwd())
    for name in sys.argv[1:]:
        importlib.import_module(name)
    before = snapshot()
    for package in PACKAGES:
        module = importlib.import_module(package)
        for found in pkgutil.walk_packages(module.__path__, package + "."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    after = snapshot()
    changed = [what for what in before if before[what] != after[what]]
    if changed:
        sys.exit("importing the project changed: " + ", ".join(changed))


if __name__ == "__main__":
    main()
