"""Per-sample outcomes as scores: what the mean of a record's metric is the mean of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.records.record import Accuracy

Scores = NDArray[np.float64]


def sample_scores(metric: str, outcomes: Mapping[str, Sequence[Any]]) -> Scores | None:
    """Turn a record's outcomes into one score a sample, shape (n,), whose mean is the metric.

    Args:
        metric: A metric's name: ``top1``, ``top5``, ``i2t_r1`` or any key of ``outcomes``.
        outcomes: Per-sample outcomes of a record; ranks count from 0.

    Returns:
        Scores up to the metric's unit, or None where the outcomes do not hold it.
    """
    key = "correct" if metric in ("top1", "accuracy") and metric not in outcomes else metric
    if key in outcomes:
        return np.asarray(outcomes[key], dtype=np.float64)
    match = re.fullmatch(r"(?:(?P<way>\w+)_)?(?:r|top)(?P<k>\d+)", metric)
    if match is None:
        return None
    k, way = int(match["k"]), match["way"]
    ranks = outcomes.get(f"rank_{way}" if way else "rank")
    if ranks is not None:
        return (np.asarray(ranks) < k).astype(np.float64)
    hits = outcomes.get(f"correct{k}", outcomes.get(f"correct_top{k}"))
    return None if hits is None else np.asarray(hits, dtype=np.float64)


def scores_by_seed(metric: str, accuracy: Accuracy) -> Scores | None:
    """Return a score for each seed and sample, shape (seeds, n), or None as `sample_scores`."""
    each = [sample_scores(metric, one) for one in (accuracy.outcomes, *accuracy.repeats)]
    known = [one for one in each if one is not None]
    if len(known) < len(each) or len({one.shape for one in known}) > 1:
        return None
    return np.stack(known)
