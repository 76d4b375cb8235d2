"""The types that everything else speaks, and the register of methods.

Deciding is not applying. A method (`Reducer`) looks at a `Site` and answers with a `Plan`; the
harness (`bench.engine`) moves the tokens, their sizes and the bookkeeping. What a method file needs
is imported from here, and from `bench.core.kinds` if it is more than a plan for each block; it is
loaded on first use, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError, Unsupported, check_known, near_miss
from bench.core.registry import method, methods, register

if TYPE_CHECKING:
    from bench.core.learner import Learner
    from bench.core.observe import Observer, observing, redrawing
    from bench.core.plan import Plan
    from bench.core.reducer import Reducer
    from bench.core.schedules import Schedule, default_layers
    from bench.core.site import Site
    from bench.core.tensors import take

_LAZY = {
    "Learner": "learner",
    "Observer": "observe",
    "Plan": "plan",
    "Reducer": "reducer",
    "Schedule": "schedules",
    "Site": "site",
    "default_layers": "schedules",
    "observing": "observe",
    "redrawing": "observe",
    "take": "tensors",
}

__all__ = [
    "BenchError",
    "Learner",
    "Observer",
    "Plan",
    "Reducer",
    "Schedule",
    "Site",
    "Unsupported",
    "check_known",
    "default_layers",
    "method",
    "methods",
    "near_miss",
    "observing",
    "redrawing",
    "register",
    "take",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"bench.core.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'bench.core' has no attribute '{name}'")
