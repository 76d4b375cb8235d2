"""`reduced()`: run a model with a token-reduction method in it, and have the model back after.

The blocks' `forward` is overridden on the instances inside a context manager and removed again, so
parameters, hooks, state-dict keys and fused attention stay what they were, and `torch.compile`
sees plain code. Accuracy and cost are taken from this same forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from bench.core import Reducer, Schedule
from bench.core.errors import BenchError, Unsupported, near_miss
from bench.core.registry import method as lookup
from bench.core.schedules import as_schedule, removes_nothing
from bench.engine.families import adapter_for
from bench.engine.forward import Part, Pass
from bench.engine.tower import Tower, override


@contextlib.contextmanager
def reduced(
    model: nn.Module,
    method: str | Reducer | Sequence[tuple[str | Reducer, Mapping[str, Any]]],
    *,
    r: Any = None,
    keep_rate: Any = None,
    layers: Any = None,
    **params: Any,
) -> Iterator[nn.Module]:
    """Run `model` with a token-reduction method inside the block; it is as before afterwards.

    Args:
        model: a model that an adapter knows (`bench.adapter_for`).
        method: a registered name or a `Reducer`; or several, each with its own arguments:
            `[("evit", {"keep_rate": 0.7, "layers": [2]}), ("tome", {"r": {"text": 2}})]`. In a
            layer where several act, they act in this order.
        r: tokens to remove a layer: an int, a list with one int a block, a schedule, or a mapping
            by tower (`{"vision": 16, "text": 6}`). Without a mapping the image tower is meant
            where the model has one.
        keep_rate: share of the removable tokens kept at each of `layers` (float, one a layer, or a
            mapping by tower). Give `r` or `keep_rate`; with neither, the method's default.
        layers: 0-based blocks to reduce at; default 3, 6, 9 of 12 for `keep_rate`, all for `r`.
        **params: the method's own parameters.

    Yields:
        The model itself.

    Raises:
        BenchError: unknown method, parameter, tower or budget; unsupported model.
    """
    given = {"r": r, "keep_rate": keep_rate, "layers": layers, **params}
    if isinstance(method, str | Reducer):
        wanted: Sequence[tuple[str | Reducer, Mapping[str, Any]]] = [(method, given)]
    else:
        wanted = method
        if any(value is not None for value in given.values()):
            raise BenchError("with several methods each has its own r=, keep_rate= and parameters")
    towers = adapter_for(model).towers(model)
    installed: dict[str, list[Part]] = {}
    with contextlib.ExitStack() as stack:
        for tower, part in _parts(stack, wanted, towers):
            installed.setdefault(tower, []).extend(part)
        for tower in list(installed):
            for name in towers[tower].linked:
                installed.setdefault(name, [])
        runs = {name: towers[name].start(parts) for name, parts in installed.items()}
        for name, run in runs.items():
            run.upstream = runs
            _install(stack, towers[name], run)
        yield model


def _parts(
    stack: contextlib.ExitStack,
    wanted: Sequence[tuple[str | Reducer, Mapping[str, Any]]],
    towers: Mapping[str, Tower],
) -> Iterator[tuple[str, Sequence[Part]]]:
    """What each method does in which tower; one that acts on the input is put to work at once."""
    for method, arguments in wanted:
        given = dict(arguments)
        budget = [given.pop(key, None) for key in ("r", "keep_rate", "layers")]
        reducer = _reducer(method, given)
        if reducer.parts is not None:
            yield from _parts(stack, reducer.parts, towers)
            continue
        budgets = _budgets(reducer, towers, *budget)
        if reducer.acts == "input":
            for name in _resize(stack, reducer, towers, budgets):
                if towers[name].linked:  # others have to know that there are fewer tokens
                    yield name, ()
        elif not all(removes_nothing(schedule) for schedule in budgets.values()):
            if reducer.appends:  # its tokens ride along in every tower
                riding = [name for name in towers if name in (*reducer.towers, *reducer.visits)]
                budgets = {**{name: as_schedule(reducer, 0) for name in riding}, **budgets}
            for name, schedule in budgets.items():
                yield name, (Part(reducer, schedule),)


def _reducer(method: str | Reducer, params: dict[str, Any]) -> Reducer:
    if isinstance(method, Reducer):
        if params:
            raise BenchError(f"parameters {sorted(params)} belong to the {method.name} instance")
        return method
    cls = lookup(method)
    known = list(getattr(cls, "__dataclass_fields__", {}))
    for name in params:
        if name not in known:
            raise BenchError(f"method '{method}' has no parameter '{name}'{near_miss(name, known)}")
    return cls(**params)


def _budgets(
    reducer: Reducer, towers: Mapping[str, Tower], r: Any, keep_rate: Any, layers: Any
) -> dict[str, Schedule]:
    """The schedule of each tower that the user's budget names."""
    if r is None and keep_rate is None:
        r, keep_rate = reducer.budget.get("r"), reducer.budget.get("keep_rate")
    if layers is None and keep_rate is not None:
        layers = reducer.budget.get("layers")
    named = [b for b in (r, keep_rate, layers) if isinstance(b, Mapping)]
    wanted = list(dict.fromkeys(name for b in named for name in b))
    if not wanted:
        wanted = [name for name in reducer.towers if name in towers][:1]
        if not wanted:
            raise Unsupported(
                f"method '{reducer.name}' acts in a {' or '.join(reducer.towers)} tower, and this "
                f"model has {' and '.join(towers)}{_fixed(towers)}"
            )
    for name in wanted:
        if name not in towers:
            hint = _fixed(towers) or near_miss(name, towers)
            raise BenchError(f"this model has no '{name}' tower{hint}")
        if name not in reducer.towers:
            where, why = " or ".join(reducer.towers), _fixed(towers) if towers[name].fixed else ""
            raise Unsupported(
                f"method '{reducer.name}' acts in a {where} tower, not in '{name}'{why}"
            )

    def of(budget: Any, name: str) -> Any:
        return budget.get(name) if isinstance(budget, Mapping) else budget

    return {
        name: as_schedule(reducer, of(r, name), of(keep_rate, name), of(layers, name))
        for name in wanted
    }


def _fixed(towers: Mapping[str, Tower]) -> str:
    """Why parts of the model are never reduced, as the end of a message."""
    return "".join(f"; {tower.fixed}" for tower in towers.values() if tower.fixed)


def _install(stack: contextlib.ExitStack, tower: Tower, run: Pass) -> None:
    for part in run.parts:
        if part.reducer.needs_anchor and not tower.has_anchor:
            where = "image encoder" if "vision" in tower.linked else f"{tower.name} tower"
            raise Unsupported(
                f"method '{part.reducer.name}' ranks tokens by the class token, and this model's "
                f"{where} has none"
            )
    if "forward" in tower.blocks[0].__dict__:
        raise BenchError(
            "the model is already inside reduced(): leave that block first, or give both methods "
            "to one reduced()"
        )
    stack.enter_context(tower.install(run))
    for layer, block in enumerate(tower.blocks):
        stack.enter_context(override(block, "forward", partial(run.block, layer, block)))


def _resize(
    stack: contextlib.ExitStack,
    reducer: Reducer,
    towers: Mapping[str, Tower],
    budgets: Mapping[str, Schedule],
) -> Iterator[str]:
    for name, schedule in budgets.items():
        rate = getattr(schedule, "rate", None)
        if not isinstance(rate, float):
            raise BenchError(f"method '{reducer.name}' takes keep_rate= (one number), not r=")
        if rate < 1:
            stack.enter_context(towers[name].resize(partial(reducer.resize, rate)))
            yield name
