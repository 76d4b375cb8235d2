"""Budgets as a share of the cost: which `r` or keep rate makes a method cost 50 % of the GMACs?

    budgets.solve(model, "tome", "50% gmacs", inputs).params        # {"r": 31}

Costs: "gmacs" (counted), "tokens" (mean tokens a layer, of the tower that loses most), "latency"
(measured in turns with the unreduced model, at the batch of the inputs). All are in percent of the
unreduced model's. Counting needs shapes only, so the model may be on the meta device.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

import bench
from bench import registry
from bench.errors import BenchError
from bench.spec import BASELINE, label

COSTS = ("gmacs", "tokens", "latency")
SMALLEST_RATE = 0.01
RATE_STEP = 0.005
TIMED_PAIRS = 7


@dataclass(frozen=True)
class Target:
    """A wanted cost, in percent of the unreduced model's."""

    percent: float
    of: str


@dataclass(frozen=True)
class Solved:
    """The parameters that come nearest to a target, and the cost in percent that they have."""

    params: dict[str, Any]
    percent: float


def parse(text: str) -> Target:
    """Return what "50% gmacs" asks for.

    Raises:
        BenchError: it is written otherwise, or out of range.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*%\s*(?:of\s+)?(\w+)\s*", str(text))
    if not found or found[2].lower() not in COSTS:
        raise BenchError(f"budget '{text}': write a percentage of {', '.join(COSTS)}: 50% gmacs")
    percent = float(found[1])
    if not 0 < percent <= 100:
        raise BenchError(f"budget '{text}': the percentage must be above 0 and at most 100")
    return Target(percent, found[2].lower())


def solve(
    model: nn.Module,
    method: str,
    target: Target | str,
    inputs: Mapping[str, Any],
    params: Mapping[str, Any] | None = None,
) -> Solved:
    """Return the `r` (or keep rate, whichever the method takes) whose cost is nearest to `target`.

    Args:
        model: the unreduced model; on the meta device unless latency is asked for.
        method: a registered name.
        target: such as "50% gmacs".
        inputs: keyword arguments of the model.
        params: the method's other parameters; `layers` too.

    Raises:
        BenchError: the method cannot get there; the message says how far it can.
    """
    wanted = parse(target) if isinstance(target, str) else target
    knob = next(iter(registry.method(method).budget), "r")
    if method == BASELINE:
        raise BenchError(f"method '{method}' has no budget to solve for: it removes nothing")
    given = dict(params or {})
    cost = _cost(model, method, wanted.of, inputs, given, knob)
    values = _values(model, inputs, knob)
    least, most = cost(values[0]), cost(values[-1])
    if not least <= wanted.percent <= most:
        ends = f"{least:.1f} to {most:.1f} % of the {wanted.of}"
        raise BenchError(
            f"{label(method, given)} reaches {ends} ({knob} from {values[0]:g} to {values[-1]:g}); "
            f"{wanted.percent:g} % is out of reach"
            + ("" if knob == "r" else ": earlier or more layers= reach further")
        )
    above = bisect.bisect_right(values, wanted.percent, lo=1, hi=len(values) - 1, key=cost)
    best = min(values[above - 1 : above + 1], key=lambda v: abs(cost(v) - wanted.percent))
    return Solved({knob: best, **given}, cost(best))


def _values(model: nn.Module, inputs: Mapping[str, Any], knob: str) -> list[Any]:
    """Return the values of the knob from the cheapest to the dearest."""
    if knob == "keep_rate":
        steps = round(1 / RATE_STEP)
        return [round(i * RATE_STEP, 4) for i in range(round(SMALLEST_RATE / RATE_STEP), steps + 1)]
    tokens = bench.trace(model, **inputs).tokens
    longest = max(n for blocks in tokens.values() for n, _ in blocks)
    return list(range(longest // 2, -1, -1))


def _cost(
    model: nn.Module,
    method: str,
    of: str,
    inputs: Mapping[str, Any],
    params: dict[str, Any],
    knob: str,
) -> Callable[[Any], float]:
    plain = bench.count_macs(model, **inputs).total if of == "gmacs" else 0
    seen = _tokens(model, inputs) if of == "tokens" else {}

    @functools.cache
    def cost(value: Any) -> float:
        with bench.reduced(model, method, **{knob: value}, **params):
            if of == "gmacs":
                return 100 * float(bench.count_macs(model, **inputs).total) / plain
            if of == "tokens":
                return 100 * min(n / seen[name] for name, n in _tokens(model, inputs).items())
        return 100 / _speedup(model, method, {knob: value, **params}, inputs)

    return cost


def _tokens(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, int]:
    """Return the tokens that leave the blocks of each tower, summed over its layers."""
    towers = bench.trace(model, **inputs).tokens
    return {name: sum(out for _, out in blocks) for name, blocks in towers.items()}


def _speedup(
    model: nn.Module, method: str, params: Mapping[str, Any], inputs: Mapping[str, Any]
) -> float:
    from bench.measure.latency import paired
    from bench.session import twin

    reduced = twin(model)
    device = next(model.parameters()).device.type
    with bench.reduced(reduced, method, **params):
        pair = paired(
            lambda: model(**inputs),
            lambda: reduced(**inputs),
            repeats=TIMED_PAIRS,
            device=device,
        )
    return pair.speedup.median
