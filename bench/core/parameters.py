"""What is asked of a method, checked ahead of any model: its parameters and its budget."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bench.core import registry
from bench.core.errors import BenchError, check_known, reason_of
from bench.core.kinds import Composition
from bench.core.numbers import LARGEST
from bench.core.reducer import Reducer
from bench.core.schedules import for_tower, named_towers

BUDGET = ("r", "keep_rate", "layers")
TOWERS = ("vision", "text", "projector", "language")
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def configured(name: str, params: Mapping[str, Any]) -> Reducer:
    """Return the method called `name` with these parameters of its own.

    Raises:
        BenchError: no such method or parameter, or a value that the parameter cannot have.
    """
    cls = registry.method(name)
    types = _types(name)
    for key, value in params.items():
        check_known(f"method '{name}' has no parameter", key, types)
        try:
            types[key].validate_python(_comparable(value))
        except ValidationError as error:
            raise BenchError(
                f"{key} of method '{name}': {reason_of(error)}, not {value!r}"
            ) from None
    return cls(**params)


def own(cls: type[Reducer]) -> list[str]:
    """Return the names of a method's parameters."""
    return [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]


@functools.cache
def _types(method: str) -> dict[str, TypeAdapter[Any]]:
    cls = registry.method(method)
    hints = get_type_hints(cls)
    return {name: TypeAdapter(hints[name], config=_STRICT) for name in own(cls)}


def _comparable(value: Any) -> Any:
    """Return lists as tuples, which a sequence of any kind takes.

    Raises:
        BenchError: a whole number that no count, seed or position is as large as.
    """
    if isinstance(value, int) and abs(value) > LARGEST:
        raise BenchError(f"'{value}' is larger than {LARGEST}")
    return tuple(map(_comparable, value)) if isinstance(value, list | tuple) else value


def check_request(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise BenchError where `reduced()` would, with these arguments, in any model."""
    params = dict(arguments)
    budget = [params.pop(key, None) for key in BUDGET]
    reducer = configured(name, params)
    if isinstance(reducer, Composition):
        for part, more in reducer.parts:
            check_request(part, more)
        return
    for tower in named_towers(budget) or reducer.towers[:1]:
        check_known("there is no tower", tower, TOWERS)
        for_tower(tower, reducer, budget)
