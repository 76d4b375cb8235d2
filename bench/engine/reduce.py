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

from bench.core import Learner, Reducer, Schedule
from bench.core.errors import BenchError, Unsupported, near_miss
from bench.core.kinds import Appender, Composition, InputReducer
from bench.core.parameters import BUDGET, configured
from bench.core.schedules import (
    AtLayers,
    Constant,
    PerLayer,
    as_schedule,
    for_tower,
    named_towers,
    removes_nothing,
)
from bench.engine.families import adapter_for
from bench.engine.forward import Pass
from bench.engine.reduction import Reduction
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
    arguments = {"r": r, "keep_rate": keep_rate, "layers": layers, **params}
    if isinstance(method, str | Reducer):
        wanted: Sequence[tuple[str | Reducer, Mapping[str, Any]]] = [(method, arguments)]
    else:
        wanted = method
        if any(value is not None for value in arguments.values()):
            raise BenchError("with several methods each has its own r=, keep_rate= and parameters")
    towers = adapter_for(model).towers(model)
    with contextlib.ExitStack() as stack:
        reductions: dict[str, list[Reduction]] = {}
        for tower, more in _reductions(stack, wanted, towers):
            reductions.setdefault(tower, []).extend(more)
        for tower in list(reductions):
            for name in towers[tower].linked:
                reductions.setdefault(name, [])
        runs = {name: towers[name].start(some) for name, some in reductions.items()}
        for name, run in runs.items():
            run.upstream = runs
            _install(stack, towers[name], run)
        yield model


def check_request(
    model: nn.Module, tokens: Mapping[str, int], method: str, arguments: Mapping[str, Any]
) -> None:
    """Raise BenchError where a method cannot do in this model what is asked of it.

    Args:
        model: not reduced; may be on the meta device.
        tokens: into the first block of each tower.
        method: a registered name.
        arguments: those of `reduced()`.

    Raises:
        BenchError: as `reduced()`, or a budget that no block has the tokens for.
    """
    with reduced(model, method, **arguments):
        pass
    with contextlib.ExitStack() as stack:
        towers = adapter_for(model).towers(model)
        for tower, reductions in _reductions(stack, [(method, arguments)], towers):
            for r in (max(_counts(reduction.schedule)) for reduction in reductions):
                if r >= tokens.get(tower, r + 1):
                    raise BenchError(
                        f"r={r} is more than any block can remove: {tokens[tower]} tokens come "
                        f"into the {tower} tower"
                    )


def _counts(schedule: Schedule) -> Sequence[int]:
    """What a schedule removes at each block, where it says so in numbers of tokens."""
    inner = schedule.inner if isinstance(schedule, AtLayers) else schedule
    if isinstance(inner, PerLayer):
        return inner.counts
    return [inner.r] if isinstance(inner, Constant) else [0]


def _reductions(
    stack: contextlib.ExitStack,
    wanted: Sequence[tuple[str | Reducer, Mapping[str, Any]]],
    towers: Mapping[str, Tower],
) -> Iterator[tuple[str, Sequence[Reduction]]]:
    """Yield what each method does in which tower; image sizes are changed here, on `stack`."""
    for method, arguments in wanted:
        params = dict(arguments)
        budget = [params.pop(key, None) for key in BUDGET]
        reducer = _reducer(method, params)
        if isinstance(reducer, Composition):
            yield from _reductions(stack, reducer.parts, towers)
            continue
        schedules = {
            name: for_tower(
                name, reducer, budget, len(towers[name].blocks), towers[name].n_protected
            )
            for name in _named(reducer, towers, budget)
        }
        if isinstance(reducer, InputReducer):
            for name in _resize(stack, reducer, towers, schedules):
                if towers[name].linked:  # others have to know that there are fewer tokens
                    yield name, ()
        elif not all(removes_nothing(schedule) for schedule in schedules.values()):
            if isinstance(reducer, Appender):  # its tokens ride along in every tower
                visited = [name for name in towers if name in (*reducer.towers, *reducer.visits)]
                schedules = {**{name: as_schedule(reducer, 0) for name in visited}, **schedules}
            for name, schedule in schedules.items():
                yield name, (Reduction(reducer, schedule),)


def _reducer(method: str | Reducer, params: dict[str, Any]) -> Reducer:
    if isinstance(method, Reducer):
        if params:
            raise BenchError(f"parameters {sorted(params)} belong to the {method.name} instance")
        return method
    return configured(method, params)


def _named(reducer: Reducer, towers: Mapping[str, Tower], budget: Sequence[Any]) -> list[str]:
    """The towers that a budget names; without a mapping, the first that the method acts in.

    Raises:
        BenchError: the model has no such tower, or the method does not act there.
    """
    where = " or ".join(reducer.towers)
    names = named_towers(budget) or [name for name in reducer.towers if name in towers][:1]
    if not names:
        raise Unsupported(
            f"method '{reducer.name}' acts in a {where} tower, and this "
            f"model has {' and '.join(towers)}{_fixed(towers)}"
        )
    for name in names:
        if name not in towers:
            hint = _fixed(towers) or near_miss(name, towers)
            raise BenchError(f"this model has no '{name}' tower{hint}")
        if name not in reducer.towers:
            why = _fixed(towers) if towers[name].fixed else ""
            raise Unsupported(
                f"method '{reducer.name}' acts in a {where} tower, not in '{name}'{why}"
            )
    return names


def _fixed(towers: Mapping[str, Tower]) -> str:
    """Why parts of the model are never reduced, as the end of a message."""
    return "".join(f"; {tower.fixed}" for tower in towers.values() if tower.fixed)


def _install(stack: contextlib.ExitStack, tower: Tower, run: Pass) -> None:
    for reduction in run.reductions:
        if isinstance(reduction.reducer, Learner):
            reduction.reducer.place(next(tower.blocks[0].parameters()).device)
        if reduction.reducer.needs_anchor and not tower.has_anchor:
            raise Unsupported(
                f"method '{reduction.reducer.name}' ranks tokens by the class token, and "
                + tower.lacks_anchor
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
    reducer: InputReducer,
    towers: Mapping[str, Tower],
    schedules: Mapping[str, Schedule],
) -> Iterator[str]:
    """Have images made smaller; yield the towers that see fewer tokens."""
    for name, schedule in schedules.items():
        rate = getattr(schedule, "rate", None)
        if not isinstance(rate, float):
            raise BenchError(f"method '{reducer.name}' takes keep_rate= (one number), not r=")
        if rate < 1:
            stack.enter_context(towers[name].resize(partial(reducer.resize, rate)))
            yield name
