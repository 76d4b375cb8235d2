"""Means and differences with their 95 % intervals, over samples and over seeds.

An untrained model is scored once: its interval is over samples, and differences pair the samples. A
setting that was fine-tuned with several seeds has an interval over seeds, and differences pair the
seeds: one seed is one order of batches and one initialisation for every setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.records.outcomes import scores_by_seed
from bench.records.record import Record
from bench.report.data import stats

MEAN_RECALL = "mean_recall"  # of all recalls of a retrieval task, in both directions


@dataclass(frozen=True)
class Estimate:
    """A value in the metric's own unit; the ends are None where nothing tells its spread."""

    value: float
    low: float | None
    high: float | None
    n: int


def score(record: Record, metric: str) -> float | None:
    """Return what a record scored."""
    if metric == MEAN_RECALL:
        found = [record.accuracy.metrics[name].value for name in recalls(record)]
        return sum(found) / len(found) if found else None
    own = record.accuracy.metrics.get(metric)
    return own.value if own else None


def recalls(record: Record) -> list[str]:
    """Return the names of a record's recalls, such as ``i2t_r1``."""
    return [name for name in record.accuracy.metrics if re.fullmatch(r"(i2t|t2i)_r\d+", name)]


def over_samples(record: Record | None, metric: str) -> Estimate | None:
    """Return what a record scored, with the interval over its samples."""
    value = score(record, metric) if record else None
    if record is None or value is None:
        return None
    own = record.accuracy.metrics.get(metric)
    if own:
        low, high = own.ci95 or (None, None)
        return Estimate(value, low, high, own.n)
    scores = _samples(record, metric)
    if scores is None:
        return Estimate(value, None, None, 0)
    found = over_seeds(scores.tolist())
    return found and Estimate(value, found.low, found.high, found.n)


def difference_over_samples(
    ours: Record | None, theirs: Record | None, metric: str
) -> Estimate | None:
    """Return ours minus theirs, paired by sample; only the value where samples cannot be paired."""
    values = [score(record, metric) if record else None for record in (ours, theirs)]
    if ours is None or theirs is None or values[0] is None or values[1] is None:
        return None
    value = values[0] - values[1]
    pair = _samples(ours, metric), _samples(theirs, metric)
    if pair[0] is None or pair[1] is None or pair[0].shape != pair[1].shape:
        return Estimate(value, None, None, 0)
    unit = _scale(ours)
    found = stats.paired_difference(pair[0] / unit, pair[1] / unit)
    return Estimate(value, unit * found.low, unit * found.high, found.n)


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Return the mean with Student's t interval; None of nothing, no interval of one value."""
    from scipy.stats import t

    if not values:
        return None
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / n**0.5
    return Estimate(mean, mean - half, mean + half, n)


def difference_over_seeds(
    ours: Mapping[int, float], theirs: Mapping[int, float]
) -> Estimate | None:
    """Return the mean of ours minus theirs over the seeds that both have."""
    return over_seeds([ours[seed] - theirs[seed] for seed in sorted(ours) if seed in theirs])


def detectable(found: Estimate | None) -> float | None:
    """Return the smallest difference over seeds that such a study sees four times in five.

    That is with a power of 0.8 in a two-sided paired t test at 5 %, for seeds that spread as these.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    if found is None or found.high is None or found.n < 2:
        return None
    freedom, bound = found.n - 1, float(t.ppf(0.975, found.n - 1))
    error = (found.high - found.value) / bound  # of the mean

    def missed(shift: float) -> float:
        return float(nct.cdf(bound, freedom, shift)) - 0.2

    return error * float(brentq(missed, 0.0, 100.0))


def _scale(record: Record) -> float:
    """Return what the metrics are in, of outcomes from 0 to 1."""
    return 100.0 if any(m.unit == "%" for m in record.accuracy.metrics.values()) else 1.0


def _samples(record: Record, metric: str) -> stats.Scores | None:
    """Return a score for each sample whose mean is the metric; None where outcomes do not tell.

    The mean recall of one sample is that of an image and its text: there must be one for each.
    """
    names = recalls(record) if metric == MEAN_RECALL else [metric]
    found = [scores_by_seed(name, record.accuracy) for name in names]
    known = [one.mean(0) for one in found if one is not None]
    if not known or len(known) < len(names) or len({one.shape for one in known}) > 1:
        return None
    scores: stats.Scores = _scale(record) * np.mean(known, axis=0)
    value = score(record, metric)
    right = value is not None and abs(float(scores.mean()) - value) < 0.01
    return scores if right else None
