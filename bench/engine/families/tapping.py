"""A tap on the attention of transformers' models.

Models ask transformers' attention interface for the function that computes their attention. For the
time of a reduced pass the attention modules of a tower read a copy of their config that names a
function of ours, which notes q, k and v, adds the size bias and calls the backend that was
configured. So the model's own code, its masks and its backends (eager, SDPA) stay in use.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from bench.core.errors import Unsupported
from bench.engine.tower import Run, override

_TAP = "_reduced"  # the name of our attention function, and of what it finds on the module
_RUNS: list[Run] = []  # those that need it now


@contextlib.contextmanager
def tapped(modules: Sequence[Any], run: Run) -> Iterator[None]:
    """Let attention modules that share a config compute their attention through `run`.

    Raises:
        Unsupported: their backend is neither SDPA nor eager.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = modules[0].config
    backend = config._attn_implementation
    if backend not in ("eager", "sdpa", None):
        raise Unsupported(f"attention backend '{backend}' is not supported; use sdpa or eager")
    eager = getattr(sys.modules[type(modules[0]).__module__], "eager_attention_forward", None)
    inner = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager)
    ours = copy.copy(config)
    ours._attn_implementation_internal = _TAP
    with contextlib.ExitStack() as stack:
        stack.enter_context(_registered(run))
        for module in modules:
            stack.enter_context(override(module, "config", ours))
            stack.enter_context(override(module, _TAP, (run, inner, backend == "sdpa")))
        yield


@contextlib.contextmanager
def _registered(run: Run) -> Iterator[None]:
    """Our attention function is known to transformers as long as any run needs it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[_TAP] = _attention
    _RUNS.append(run)
    try:
        yield
    finally:
        _RUNS.remove(run)
        if not _RUNS:
            del ALL_ATTENTION_FUNCTIONS[_TAP]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kw: Any,
) -> tuple[Tensor, Tensor | None]:
    """The function that the attention modules find: (B,H,N,D) each -> ((B,N,H,D), weights).

    The run is looked up on the module, so that a deep copy made inside has a run of its own.
    """
    run, inner, fused = getattr(module, _TAP)

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return inner(module, q, k, v, mask, scaling=scale, **kw)[0].transpose(1, 2)  # type: ignore[no-any-return]

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = run.attention(query, key, value, attention_mask, scale, call, fused=fused)
    return out.transpose(1, 2), None
