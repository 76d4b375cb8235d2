"""How well a paired difference is known: half of its 95 % interval, by which a cell may stop.

A cell with a precision takes samples until its difference to the unreduced model is known that
well, and no longer. It stops by the width of the interval alone, never by where it lies, so that
the interval keeps its coverage (fixed-width sequential intervals: Chow and Robbins, 1965, Annals of
Mathematical Statistics 36; tests simulate it).
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

from bench.records.outcomes import Scores
from bench.records.record import Metric

LEVEL = 0.975


def half_width(ours: Scores, base: Scores) -> float:
    """Return half of Student's 95 % interval of the mean difference of two models' scores (n,).

    Where scores are hit or miss, one imagined sample is won and one lost, as in Bonett and Price's
    interval (2012): a few samples on which both agree must not stop a cell.
    """
    gap = ours - base
    if np.isin(ours, (0, 1)).all() and np.isin(base, (0, 1)).all():
        gap = np.append(gap, (1.0, -1.0))
    if len(gap) < 2:
        return float("inf")
    return float(stdtrit(len(gap) - 1, LEVEL) * gap.std(ddof=1) / len(gap) ** 0.5)


def scale_of(metric: Metric) -> float:
    """Return what a score is multiplied by to give a metric in its unit."""
    return 100.0 if metric.unit == "%" else 1.0
