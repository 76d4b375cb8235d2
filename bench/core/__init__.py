"""The types that everything else speaks, and the register of methods.

Deciding is not applying. A method (`Reducer`) looks at a `Site` and answers with a `Plan`; the
harness (`bench.engine`) moves the tokens, their sizes and the bookkeeping. All that a method file
needs is imported from here; it is loaded on first use, so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError, Unsupported, check_known, near_miss
from bench.core.registry import method, methods, register

if TYPE_CHECKING:
    from bench.core.kinds import (
        Adaptive,
        Appender,
        Bounded,
        Composition,
        Compounding,
        InputReducer,
        LanguageReducer,
        ProjectorReducer,
        Stochastic,
    )
    from bench.core.learner import Learner
    from bench.core.observe import Observer, observing, redrawing
    from bench.core.plan import Plan
    from bench.core.reducer import Reducer
    from bench.core.schedules import Schedule, default_layers
    from bench.core.site import LanguageSite, Site
    from bench.core.tensors import add_rows, take

_MODULES = {
    "kinds": "Adaptive Appender Bounded Composition Compounding InputReducer LanguageReducer "
    "ProjectorReducer Stochastic",
    "learner": "Learner",
    "observe": "Observer observing redrawing",
    "plan": "Plan",
    "reducer": "Reducer",
    "schedules": "Schedule default_layers",
    "site": "LanguageSite Site",
    "tensors": "add_rows take",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "Adaptive",
    "Appender",
    "BenchError",
    "Bounded",
    "Composition",
    "Compounding",
    "InputReducer",
    "LanguageReducer",
    "LanguageSite",
    "Learner",
    "Observer",
    "Plan",
    "ProjectorReducer",
    "Reducer",
    "Schedule",
    "Site",
    "Stochastic",
    "Unsupported",
    "add_rows",
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
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"bench.core.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'bench.core' has no attribute '{name}'")
