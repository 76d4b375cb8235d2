"""What methods learn with a model: for which towers, and the method with what it learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bench.core import Learner, Reducer, registry
from bench.core.kinds import Appender
from bench.core.parameters import configured
from bench.engine.families import adapter_for


def reducer(method: str, params: Mapping[str, Any], learned: Mapping[str, Path]) -> Reducer:
    """Return the method, which begins with its file among what was `learned` with a model, if any.

    Raises:
        BenchError: there is no such method, or it has no such parameter.
    """
    kind = registry.method(method)
    if issubclass(kind, Learner) and method in learned:
        params = {kind.learns: learned[method], **params}
    return configured(method, params)


def towers(reducer: Reducer, model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (depth, width) of the model's towers that a method learns something for, by name."""
    if not isinstance(reducer, Learner):
        return {}
    return {
        name: (len(tower.blocks), tower.width)
        for name, tower in adapter_for(model).towers(model).items()
        if name in reducer.towers or (isinstance(reducer, Appender) and name in reducer.visits)
    }
