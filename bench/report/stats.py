"""Paired statistics from per-sample outcomes.

Two methods that answer the same samples are compared sample by sample: most of the spread of an
accuracy is the samples' and cancels in the difference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
LEVEL = 0.05
RESAMPLES = 4999


@dataclass(frozen=True)
class Difference:
    """A paired difference of means with its 95 % interval, in the scores' own unit."""

    value: float
    low: float
    high: float
    n: int


def sample_scores(metric: str, outcomes: Mapping[str, Sequence[Any]]) -> Scores | None:
    """Turn a record's outcomes into one score a sample for a metric.

    Args:
        metric: A metric's name: ``top1``, ``top5``, ``i2t_r1`` or any key of ``outcomes``.
        outcomes: Per-sample outcomes of a record; ranks count from 0.

    Returns:
        Scores, shape (n,), whose mean is the metric (up to the unit), or None where the outcomes do
        not hold it.
    """
    if metric in outcomes:
        return np.asarray(outcomes[metric], dtype=np.float64)
    if metric in ("top1", "accuracy") and "correct" in outcomes:
        return np.asarray(outcomes["correct"], dtype=np.float64)
    match = re.fullmatch(r"(?:(?P<way>\w+)_)?(?:r|top)(?P<k>\d+)", metric)
    if match is None:
        return None
    k, way = int(match["k"]), match["way"]
    ranks = outcomes.get(f"rank_{way}" if way else "rank")
    if ranks is not None:
        return (np.asarray(ranks) < k).astype(np.float64)
    hits = outcomes.get(f"correct{k}", outcomes.get(f"correct_top{k}"))
    return None if hits is None else np.asarray(hits, dtype=np.float64)


def paired_difference(ours: Scores, base: Scores) -> Difference:
    """Compare two methods on the same samples, by a paired percentile bootstrap.

    Where scores are hit or miss, one imagined sample is won and one lost, as in Bonett and Price's
    interval (2012): where few samples disagree a plain bootstrap collapses to a point.

    Args:
        ours: Scores, shape (n,).
        base: The baseline's scores on the same samples in the same order, shape (n,).

    Returns:
        The difference and its interval, the same each time.

    Raises:
        ValueError: If the shapes differ or there is no sample.
    """
    gap = _gap(ours, base)
    if _are_hits(ours, base):
        low, high = _hits_interval(int(np.sum(gap > 0)) + 1, int(np.sum(gap < 0)) + 1, len(gap) + 2)
    else:
        low, high = _graded_interval(gap)
    return Difference(float(gap.mean()), low, high, len(gap))


@lru_cache(maxsize=4096)
def _hits_interval(won: int, lost: int, n: int) -> tuple[float, float]:
    """Return the bootstrap interval of (won - lost) / n, as of infinitely many resamples.

    A resample is a sum of n steps up, down or none: its distribution is the n-th power of one
    step's characteristic function.
    """
    up = np.exp(-2j * np.pi * np.arange(2 * n + 1) / (2 * n + 1))
    one = (won * up + lost / up + (n - won - lost)) / n
    chances = np.fft.fftshift(np.fft.ifft(one**n).real)
    ends = np.searchsorted(np.cumsum(chances), [LEVEL / 2, 1 - LEVEL / 2])
    low, high = (ends - n) / n
    return float(low), float(high)


def _graded_interval(gap: Scores) -> tuple[float, float]:
    """Return the bootstrap interval of a mean.

    To draw n samples with replacement is to draw how often each distinct one comes: a multinomial.
    This is scipy.stats.bootstrap in a small part of its time.
    """
    values, counts = np.unique(gap, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(gap), counts / len(gap), size=RESAMPLES)
    low, high = np.quantile(draws @ values / len(gap), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def p_value(ours: Scores, base: Scores) -> float:
    """Return the two-sided p value of "no difference" between two methods on the same samples.

    McNemar's exact test where scores are hit or miss, otherwise a test that flips signs at random.
    """
    gap = _gap(ours, base)
    if _are_hits(ours, base):
        return _mcnemar(int(np.sum(gap > 0)), int(np.sum(gap < 0)))
    if not gap.any():
        return 1.0
    from scipy.stats import permutation_test

    return float(
        permutation_test(
            (gap,),
            np.mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=500,
            rng=np.random.default_rng(0),
        ).pvalue
    )


@lru_cache(maxsize=4096)
def _mcnemar(won: int, lost: int) -> float:
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(won, lost), won + lost, 0.5)))


def holm(values: Sequence[float]) -> list[float]:
    """Return p values of one family, corrected for how many there are by Holm's method.

    As statsmodels' multipletests, which collects garbage in each call: 60 ms a family.
    """
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    result = np.empty_like(p)
    result[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in result]


def _gap(ours: Scores, base: Scores) -> Scores:
    if ours.shape != base.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"scores of shape {ours.shape} and {base.shape} cannot be paired")
    return ours - base


def _are_hits(*scores: Scores) -> bool:
    return all(bool(np.all((one == 0) | (one == 1))) for one in scores)
