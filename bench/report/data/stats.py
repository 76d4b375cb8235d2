"""Paired statistics from per-sample outcomes.

Two methods that answer the same samples are compared sample by sample: most of the spread of an
accuracy is the samples' and cancels in the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import (
    bdtr,
    ndtri,
    stdtr,
    stdtrit,
)  # scipy.stats checks its arguments for 1 ms a call

from bench.records.outcomes import Scores as Scores

LEVEL = 0.05
RESAMPLES = 4999
DEAR = 150  # to draw how often a value comes costs as much as to add up so many samples
BLOCK = 512  # resamples at a time


@dataclass(frozen=True)
class Difference:
    """A paired difference of means, in the scores' own unit.

    Attributes:
        value, low, high: The difference and its 95 % interval.
        n: Samples.
        p: The two-sided p value of "no difference".
    """

    value: float
    low: float
    high: float
    n: int
    p: float


def paired_over_seeds(ours: Scores, base: Scores) -> Difference:
    """Compare two methods on the same samples, where one or both were run under several seeds.

    Samples and seeds are both drawn: the variance of the mean difference is that over samples plus
    that over seeds, the latter without the samples' part (a two-way layout with random effects).
    Interval and test are Student's, with Satterthwaite's degrees of freedom; hits and misses get
    an imagined sample won and one lost, as in `paired_difference`, which takes a single seed.

    Args:
        ours: Scores, shape (seeds, n); with one seed it is compared with each of the others.
        base: Likewise; several seeds on both sides are paired.

    Raises:
        ValueError: If the shapes do not allow it.
    """
    if not pairable(ours, base):
        raise ValueError(f"scores of shape {ours.shape} and {base.shape} cannot be paired")
    gap = ours - base
    seeds, n = gap.shape
    if seeds == 1 or n == 1:
        return paired_difference(ours.mean(0), base.mean(0))
    samples, by_seed, value = gap.mean(0), gap.mean(1), float(gap.mean())
    rest = gap - samples - by_seed[:, None] + value
    noise = float((rest**2).sum()) / ((seeds - 1) * (n - 1))
    of_seeds = max(float(by_seed.var(ddof=1)) - noise / n, 0.0) / seeds
    if _are_hits(ours) or _are_hits(base):
        samples = np.append(samples, (1.0, -1.0))
    of_samples = float(samples.var(ddof=1)) / len(samples)
    return _students(value, float(samples.mean()), n, (of_samples, n - 1), (of_seeds, seeds - 1))


def pairable(ours: Scores, base: Scores) -> bool:
    """Whether two methods' scores, shape (seeds, n), are of the same samples and seeds, or one."""
    if not ours.ndim == base.ndim == 2 or ours.shape[1] != base.shape[1] or not ours.shape[1]:
        return False
    return len(ours) == len(base) or 1 in (len(ours), len(base))


def _students(value: float, centre: float, n: int, *parts: tuple[float, int]) -> Difference:
    """Return a difference whose variance is a sum of parts, each with its degrees of freedom."""
    variance = sum(part for part, _ in parts)
    if not variance:
        return Difference(value, value, value, n, float(value == 0))
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(stdtrit(freedom, 1 - LEVEL / 2)) * variance**0.5
    p = min(1.0, 2 * float(stdtr(freedom, -abs(centre) / variance**0.5)))
    return Difference(value, centre - half, centre + half, n, p)


def paired_difference(ours: Scores, base: Scores) -> Difference:
    """Compare two methods on the same samples, by a paired percentile bootstrap and a test.

    Where scores are hit or miss, one imagined sample is won and one lost, as in Bonett and Price's
    interval (2012): where few samples disagree a plain bootstrap collapses to a point. The test is
    McNemar's exact one there, otherwise one that flips the differences' signs at random.

    Args:
        ours: Scores, shape (n,).
        base: The baseline's scores on the same samples in the same order, shape (n,).

    Returns:
        The difference, its interval and its p value, the same each time.

    Raises:
        ValueError: If the shapes differ or there is no sample.
    """
    if ours.shape != base.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"scores of shape {ours.shape} and {base.shape} cannot be paired")
    gap = ours - base
    if _are_hits(ours) and _are_hits(base):
        won, lost = int(np.count_nonzero(gap > 0)), int(np.count_nonzero(gap < 0))
        ends, p = _hits_interval(won + 1, lost + 1, len(gap) + 2), _mcnemar(won, lost)
    else:
        ends, p = _graded_interval(gap), _sign_flips(gap)
    return Difference(float(gap.mean()), *ends, len(gap), p)


@lru_cache(maxsize=2**16)
def _hits_interval(won: int, lost: int, n: int) -> tuple[float, float]:
    """Return the bootstrap interval of (won - lost) / n, as of infinitely many resamples.

    A resample is a sum of n steps up, down or none: its distribution is the n-th power of one
    step's characteristic function. Sums ten standard deviations away have no chance to speak of,
    and are left out.
    """
    reach = 10 + int(10 * (won + lost) ** 0.5)
    size, first = 2 * reach + 1, won - lost - reach
    up = np.exp(-2j * np.pi * np.arange(reach + 1) / size)
    one = (won * up + lost / up + (n - won - lost)) / n
    chances = np.roll(np.fft.irfft(one**n, size), -first)
    low, high = np.searchsorted(np.cumsum(chances), [LEVEL / 2, 1 - LEVEL / 2]) + first
    return float(low) / n, float(high) / n


def _graded_interval(gap: Scores) -> tuple[float, float]:
    """Return the bootstrap interval of a mean: scipy.stats.bootstrap in a small part of its time.

    To draw n samples with replacement is to draw how often each comes, a multinomial.
    """
    values, counts = np.unique(gap, return_counts=True)
    if DEAR * len(values) < len(gap):
        draws = _rng().multinomial(len(gap), counts / len(gap), size=RESAMPLES)
        means = draws @ values / len(gap)
    else:
        means = _product(_draws(len(gap), RESAMPLES), gap) / len(gap)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def _flipped(gap: Scores) -> Scores:
    """Return sums of the gaps with signs flipped at random, shape (RESAMPLES,)."""
    sizes, counts = np.unique(np.abs(gap), return_counts=True)
    if DEAR * len(sizes) < len(gap):
        draws = 2 * _rng().binomial(counts, 0.5, size=(RESAMPLES, len(sizes))) - counts
        sums: Scores = draws @ sizes
        return sums
    return _product(_signs(len(gap), RESAMPLES), gap)


# What is drawn depends on the number of samples alone: all cells of a task share it.
@lru_cache(maxsize=2)
def _draws(n: int, times: int) -> NDArray[np.int8]:
    drawn = _rng().multinomial(n, np.full(n, 1 / n), size=times)
    return np.minimum(drawn, 127).astype(np.int8)


@lru_cache(maxsize=2)
def _signs(n: int, times: int) -> NDArray[np.int8]:
    bits = _rng().integers(0, 2, (times, n), dtype=np.int8)
    return 2 * bits - 1


def _product(rows: NDArray[np.int8], gap: Scores) -> Scores:
    """Return rows @ gap a few rows at a time: as floats, all of them take eight times the room."""
    return np.concatenate([rows[i : i + BLOCK] @ gap for i in range(0, len(rows), BLOCK)])


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _sign_flips(gap: Scores) -> float:
    """Return scipy.stats.permutation_test's p value, which counts the data as one more draw."""
    if not gap.any():
        return 1.0
    extreme = np.abs(_flipped(gap)) >= abs(float(gap.sum())) * (1 - 1e-12)  # ties by rounding too
    return (int(extreme.sum()) + 1) / (RESAMPLES + 1)


@lru_cache(maxsize=2**16)
def _mcnemar(won: int, lost: int) -> float:
    return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5)))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's interval of a share of n samples, as statsmodels does; both from 0 to 1.

    A mean over several seeds is taken as if it were of one: the interval is no narrower.
    """
    z2 = float(ndtri(1 - LEVEL / 2)) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * (share * (1 - share) / n + z2 / (4 * n**2))) ** 0.5 / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values of one family, corrected for how many there are by Holm's method.

    As statsmodels' multipletests, which collects garbage in each call: 130 ms a family.
    """
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    result = np.empty_like(p)
    result[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in result]


def _are_hits(scores: Scores) -> bool:
    return bool(np.array_equal(scores * scores, scores))
