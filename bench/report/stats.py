"""Paired statistics from per-sample outcomes.

Two methods that answer the same samples are compared sample by sample: most of the spread of an
accuracy is the samples' and cancels in the difference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A paired difference of means, in the scores' own unit (0 to 1 for hit or miss).

    Attributes:
        value: Mean of ours minus the baseline's.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        p: Two-sided p value of "no difference" (exact McNemar test for hits, t test otherwise).
        n: Number of pairs.
    """

    value: float
    low: float
    high: float
    p: float
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
    """Compare two methods on the same samples.

    For hit-or-miss scores the interval is Bonett and Price's adjusted Wald interval for paired
    proportions (2012), which keeps its coverage where few samples disagree (a bootstrap then
    collapses to a point), and the p value is McNemar's exact test. Other scores get the paired t
    interval and test.

    Args:
        ours: Scores, shape (n,).
        base: The baseline's scores on the same samples in the same order, shape (n,).

    Returns:
        The difference and its interval.

    Raises:
        ValueError: If the shapes differ or there is no sample.
    """
    if ours.shape != base.shape or ours.ndim != 1 or not len(ours):
        raise ValueError(f"scores of shape {ours.shape} and {base.shape} cannot be paired")
    if set(np.unique(ours)) | set(np.unique(base)) <= {0.0, 1.0}:
        return _hits(ours, base)
    return _graded(ours, base)


def _hits(ours: Scores, base: Scores) -> Difference:
    from scipy.stats import binomtest

    n = len(ours)
    won, lost = int(np.sum(ours > base)), int(np.sum(ours < base))
    p_won, p_lost = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    middle = p_won - p_lost
    half = 1.959964 * float(np.sqrt((p_won + p_lost - middle**2) / (n + 2)))
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return Difference((won - lost) / n, max(-1.0, middle - half), min(1.0, middle + half), p, n)


def _graded(ours: Scores, base: Scores) -> Difference:
    from scipy.stats import ttest_rel

    gap = ours - base
    value = float(gap.mean())
    if len(gap) < 2 or float(gap.std()) == 0.0:  # no spread to estimate an interval from
        return Difference(value, value, value, 1.0 if value == 0 else float("nan"), len(gap))
    test = ttest_rel(ours, base)
    interval = test.confidence_interval(0.95)
    return Difference(
        value, float(interval.low), float(interval.high), float(test.pvalue), len(gap)
    )
