"""The accuracy of a method that draws at random: the mean over several seeds.

What one seed scores is partly its luck, and methods are judged by whether they beat `random`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from scipy.stats import t

from bench.core import registry
from bench.core.kinds import Stochastic
from bench.records.record import Accuracy, Cell, Metric
from bench.runs.session import Session, apply, parameters


def over_seeds(
    first: Accuracy, cell: Cell, session: Session, score: Callable[[int], Accuracy]
) -> Accuracy:
    """Return the mean accuracy over a random method's seeds; `first` of any other method.

    Args:
        first: the accuracy under the cell's own seed.
        cell: what is measured; its further seeds are the numbers after its own.
        session: the model, not reduced at present.
        score: takes the accuracy under a seed, of the model as it is then.
    """
    method = registry.method(cell.method)
    if not issubclass(method, Stochastic) or first.primary is None:
        return first
    start = parameters(cell)["seed"]
    further = []
    for seed in range(start + 1, start + method.seeds):
        with apply(session.loaded, replace(cell, params={**cell.params, "seed": seed})):
            further.append(score(seed))
    return averaged([first, *further])


def averaged(each: Sequence[Accuracy]) -> Accuracy:
    """Return the accuracy over seeds from the one under each."""
    first = each[0]
    assert first.primary is not None
    return replace(
        first,
        metrics={name: mean([one.metrics[name] for one in each]) for name in first.metrics},
        repeats=[one.outcomes for one in each[1:]],
        seed_values=[one.metrics[first.primary].value for one in each],
    )


def mean(each: Sequence[Metric]) -> Metric:
    """Return the mean of a metric over seeds.

    Its interval covers samples and seeds: the half-widths of both add up as squares, the samples'
    as a single seed has it, the seeds' by Student's t.
    """
    first, n = each[0], len(each)
    value = fmean(one.value for one in each)
    ends = [one.ci95 for one in each if one.ci95 is not None]
    if len(ends) < n:
        return replace(first, value=value, ci95=None)
    seeds = float(t.ppf(0.975, n - 1)) * stdev(one.value for one in each) / n**0.5
    below, above = (abs(fmean(end[side] for end in ends) - value) for side in (0, 1))
    low, high = value - (below**2 + seeds**2) ** 0.5, value + (above**2 + seeds**2) ** 0.5
    if first.unit == "%":
        low, high = max(low, 0.0), min(high, 100.0)
    return replace(first, value=value, ci95=(low, high))
