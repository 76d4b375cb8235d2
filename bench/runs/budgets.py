"""Budgets as a share of the cost: which `r` or keep rate makes a method cost 50 % of the GMACs?

    budgets.solve(model, "tome", "50% gmacs", inputs).params        # {"r": 31}

Costs: "gmacs" (counted), "tokens" (mean tokens a layer, of the tower that loses most), "latency"
(measured in turns with the unreduced model, at the batch of the inputs). All are in percent of the
unreduced model's. Counting needs shapes only, so the model may be on the meta device; but what an
adaptive method keeps depends on the images, so it is to be given several, with the real weights.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

import bench
from bench.core import registry
from bench.core.errors import BenchError
from bench.core.numbers import share
from bench.measure.latency import paired
from bench.records.record import BASELINE, label
from bench.runs.session import twin

COSTS = ("gmacs", "tokens", "latency")
SMALLEST_RATE = 0.01
RATE_STEP = 0.005
NEAR_POINTS = 5.0  # in percent of the unreduced model's cost; what lies further off is no answer
TIMED_PAIRS = 8

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A wanted cost, in percent of the unreduced model's."""

    percent: float
    of: str

    def __str__(self) -> str:
        """As it is written: ``50% gmacs``."""
        return f"{self.percent:g}% {self.of}"


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
    match = re.fullmatch(r"\s*([^\s%]+)\s*%\s*(?:of\s+)?(\w+)\s*", str(text))
    if not match or match[2].lower() not in COSTS:
        raise BenchError(f"budget '{text}': write a percentage of {', '.join(COSTS)}: 50% gmacs")
    try:
        return Target(share(match[1], 100), match[2].lower())
    except BenchError as error:
        raise BenchError(f"budget '{text}': {error}") from None


def solve(
    model: nn.Module,
    method: str,
    target: Target | str,
    inputs: Inputs | Sequence[Inputs],
    params: Mapping[str, Any] | None = None,
) -> Solved:
    """Return the `r` (or keep rate, whichever the method takes) whose cost is nearest to `target`.

    Args:
        model: the unreduced model; on the meta device unless latency is asked for.
        method: a registered name.
        target: such as "50% gmacs".
        inputs: keyword arguments of the model; or of several passes, whose mean cost counts.
        params: the method's other parameters; `layers` too.

    Raises:
        BenchError: the method cannot get there, or not near; the message says how far it can.
    """
    wanted = parse(target) if isinstance(target, str) else target
    knob = next(iter(registry.method(method).budget), "r")
    if method == BASELINE:
        raise BenchError(f"method '{method}' has no budget to solve for: it removes nothing")
    fixed = dict(params or {})
    examples = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    cost = _cost(model, method, wanted.of, examples, fixed, knob)
    values = _values(model, examples[0], knob)
    least, most = cost(values[0]), cost(values[-1])
    if not least <= wanted.percent <= most:
        ends = f"{least:.1f} to {most:.1f} % of the {wanted.of}"
        raise BenchError(
            f"{label(method, fixed)} reaches {ends} ({knob} from {values[0]:g} to {values[-1]:g}); "
            f"{wanted.percent:g} % is out of reach"
            + ("" if knob == "r" else ": earlier or more layers= reach further")
        )
    above = bisect.bisect_right(values, wanted.percent, lo=1, hi=len(values) - 1, key=cost)
    near = values[above - 1 : above + 1]
    best = min(near, key=lambda v: abs(cost(v) - wanted.percent))
    if abs(cost(best) - wanted.percent) > NEAR_POINTS:
        ends = " and ".join(f"{cost(v):.1f} % ({knob}={v:g})" for v in near)
        raise BenchError(
            f"{label(method, fixed)} has nothing near {wanted.percent:g} % of the {wanted.of}: the "
            f"nearest are {ends}"
        )
    return Solved({knob: best, **fixed}, cost(best))


def _values(model: nn.Module, inputs: Inputs, knob: str) -> list[Any]:
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
    examples: Sequence[Inputs],
    params: dict[str, Any],
    knob: str,
) -> Callable[[Any], float]:
    macs = _macs(model, examples) if of == "gmacs" else 0
    plain = _tokens(model, examples) if of == "tokens" else {}

    @functools.cache
    def cost(value: Any) -> float:
        with bench.reduced(model, method, **{knob: value}, **params):
            if of == "gmacs":
                return 100 * _macs(model, examples) / macs
            if of == "tokens":
                return 100 * min(n / plain[name] for name, n in _tokens(model, examples).items())
        return 100 / _speedup(model, method, {knob: value, **params}, examples[0])

    return cost


def _macs(model: nn.Module, examples: Sequence[Inputs]) -> int:
    """Return the MACs of all examples together."""
    return sum(bench.count_macs(model, **inputs).total for inputs in examples)


def _tokens(model: nn.Module, examples: Sequence[Inputs]) -> Counter[str]:
    """Return the tokens that leave the blocks of each tower, summed over layers and examples."""
    tokens: Counter[str] = Counter()
    for inputs in examples:
        for name, blocks in bench.trace(model, **inputs).tokens.items():
            tokens[name] += sum(out for _, out in blocks)
    return tokens


def _speedup(model: nn.Module, method: str, params: Mapping[str, Any], inputs: Inputs) -> float:
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
