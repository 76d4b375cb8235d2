"""Check the names and parameters in a suite before anything is loaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import tasks
from bench.core import Learner, registry
from bench.core.errors import BenchError, Unsupported, check_known, near_miss
from bench.core.names import check_folder_name, check_name
from bench.core.parameters import BUDGET, check_request, own
from bench.measure import profiles
from bench.models import catalogue
from bench.models.files import check_file
from bench.records.record import COST_ONLY
from bench.runs import budgets
from bench.runs.spec import Document, MethodEntry, Options, Suite, Where

# what a method's entry may have beside the method's own parameters
BUDGETS = (*BUDGET, "budget")


def check(suite: Suite, origin: Document | Options) -> None:
    """Raise BenchError, with its line, for a name or a parameter that does not exist."""
    _at(origin, ("name",), check_folder_name, "suite", suite.name)
    models = suite.known_models
    for where, model in models.items():
        random = suite.random_weights if model.random_weights is None else model.random_weights
        _at(origin, where, catalogue.check_name, model.name, random)
        _check_tasks(model.tasks or [], (*where, "tasks"), origin)
    _check_tasks(suite.tasks, ("tasks",), origin)
    for i, profile in enumerate(suite.profiles):
        _at(origin, ("profiles", i), profiles.load, profile)
    names = [model.name for model in models.values()]
    known = [*names, *suite.tasks, *(task for m in models.values() for task in m.tasks or [])]
    for name, short in suite.names.items():
        place = ("names", name)
        _at(origin, place, check_known, "this suite has no model or task", name, known)
        _at(origin, place, check_name, "the name", short)
        if list(suite.names.values()).count(short) > 1:
            raise origin.error(place, f"two models or tasks are named '{short}'")
    for i, entry in enumerate(suite.methods):
        _check_parameters(entry, i, origin)
        of = {"model": (entry.models, names), "task": (entry.tasks, known[len(names) :])}
        for kind, (chosen, there) in of.items():
            for j, name in enumerate(chosen or []):
                if name not in there:
                    message = f"no {kind} '{name}' in this suite{near_miss(name, there)}"
                    raise origin.error(("methods", i, f"{kind}s", j), message)


def _check_tasks(names: list[str], where: Where, origin: Document | Options) -> None:
    for i, name in enumerate(names):
        if name != COST_ONLY:
            _at(origin, (*where, i), tasks.check_name, name)


def _check_parameters(entry: MethodEntry, i: int, origin: Document | Options) -> None:
    method = _at(origin, ("methods", i), registry.method, entry.name)
    known = own(method)
    parameters = entry.model_extra or {}
    both = [key for key in ("r", "keep_rate") if key in parameters]
    if both and "budget" in parameters:
        message = f"method '{entry.name}' has a budget, which says what {both[0]} is: give one"
        raise origin.error(("methods", i, "budget"), message)
    for key, value in parameters.items():
        if key not in (*known, *BUDGETS):
            hint = near_miss(key, [*BUDGETS, *known, "models", "tasks"])
            message = f"method '{entry.name}' has no parameter '{key}'{hint}"
            raise origin.error(("methods", i, key), message)
        if value is None or value == []:
            raise origin.error(("methods", i, key), f"'{key}' has no value: give one, or a list")
        learned = issubclass(method, Learner) and key == method.learns
        for choice in value if isinstance(value, list) else [value]:
            if key == "budget":
                _at(origin, ("methods", i, key), budgets.parse, choice)
            elif learned and isinstance(choice, str):
                _at(origin, ("methods", i, key), _check_learned, choice)
    for params in entry.sweeps():
        params.pop("budget", None)
        with placed(origin, i, params):
            check_request(entry.name, params)


@contextlib.contextmanager
def placed(origin: Document | Options, i: int, params: Mapping[str, Any]) -> Iterator[None]:
    """Have an error about the parameters of entry `i` begin with its place in the suite."""
    try:
        yield
    except Unsupported:
        raise
    except BenchError as error:
        word = str(error).split()[0]
        key = word if word in params else next((key for key in BUDGETS if key in params), "")
        raise origin.error(("methods", i, key), str(error)) from error


def _check_learned(value: str) -> None:
    """Check a file of safetensors; the method reads it, and knows what else there can be."""
    if os.path.isfile(value):
        check_file(Path(value))


def _at(origin: Document | Options, where: Where, look: Callable[..., Any], *arguments: Any) -> Any:
    """Call `look`; an error of it begins with the place in the suite's file."""
    try:
        return look(*arguments)
    except BenchError as error:
        raise origin.error(where, str(error)) from error
