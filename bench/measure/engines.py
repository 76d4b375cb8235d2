"""Engines: how the operators of a forward pass are run.

"eager" runs them one by one, as Python comes to them. "compile" makes one graph of the pass and
code of the graph (TorchInductor), so that elementwise operators are fused. "graphs" replays that
code as a CUDA graph besides, which launches it at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from bench.core.errors import BenchError, Unsupported, shown
from bench.records.record import COMPILE, EAGER, GRAPHS

_MODES: Mapping[str, str] = {COMPILE: "default", GRAPHS: "reduce-overhead"}  # of torch.compile


def require(engine: str, device: str) -> None:
    """Check that this machine has what an engine needs.

    Raises:
        BenchError: it has not; one line with what is missing.
    """
    if engine == GRAPHS and device != "cuda":
        raise BenchError(f"engine 'graphs' needs a CUDA device, not {device}: use --engine compile")
    compilers = filter(None, [os.environ.get("CXX"), "g++", "clang++", "c++"])
    if engine == COMPILE and device == "cpu" and not any(map(shutil.which, compilers)):
        raise BenchError("engine 'compile' needs a C++ compiler: install g++, or name one in CXX")


def forget() -> None:
    """Drop all compiled code, so that the next passes are compiled anew."""
    torch.compiler.reset()


def engaged(model: nn.Module, engine: str, inputs: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what runs `model` under an engine, ready for inputs of these shapes.

    Raises:
        Unsupported: it cannot be one graph.
    """
    if engine == EAGER:
        return model
    from torch._dynamo.exc import TorchDynamoException

    run = torch.compile(model, fullgraph=True, dynamic=False, mode=_MODES[engine])
    try:
        run(**inputs)
    except TorchDynamoException as error:
        reason = shown(error)
        raise Unsupported(f"engine '{engine}' cannot make one graph of it: {reason}") from error
    return run


def settled(engine: str) -> AbstractContextManager[object]:
    """Return a context in which a compiled pass is not compiled again, which would be timed.

    A pass that has to be raises a RuntimeError in it.
    """
    return nullcontext() if engine == EAGER else torch.compiler.set_stance("fail_on_recompile")
