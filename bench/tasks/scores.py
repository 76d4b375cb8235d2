"""How answers become metrics: shares and means with intervals, ranks that ties cannot flatter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.records.record import Metric
from bench.tasks.base import Evaluation


def proportion(ranks: Sequence[int], k: int) -> Metric:
    """Return the percentage of `ranks` (0-based) below `k`, with its Wilson interval."""
    from statsmodels.stats.proportion import proportion_confint

    hits, n = sum(rank < k for rank in ranks), len(ranks)
    low, high = proportion_confint(hits, n, method="wilson")
    return Metric(100 * hits / n, "%", (100 * float(low), 100 * float(high)), n)


def average(scores: Sequence[float], unit: str, scale: float = 1.0) -> Metric:
    """Return the mean of `scores`, times `scale`, with Student's interval where there is one."""
    from statsmodels.stats.weightstats import DescrStatsW

    mean = scale * sum(scores) / len(scores)
    if len(scores) < 2:
        return Metric(mean, unit, None, len(scores))

    low, high = DescrStatsW(scores).tconfint_mean()
    return Metric(mean, unit, (scale * float(low), scale * float(high)), len(scores))


def ranks_of(scores: Tensor, right: Tensor) -> Tensor:
    """Return the 0-based rank of each query's best right answer, ties counted against it.

    A wrong answer that scores the same as the right one stands before it, and so does one that
    cannot be compared (NaN): an embedding that is the same for everything scores nothing.

    Args:
        scores: (Q,A) score of each answer for each query.
        right: (Q,A) bool, the right answers, at least one a query.
    """
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return (~(scores < best) & ~right).sum(1)


def ranks_of_labels(scores: Tensor, labels: Sequence[int], decoded: Sequence[bool]) -> list[int]:
    """Return the 0-based rank of each picture's class among the scores (B,classes).

    A picture that did not decode has the rank after the last: it is right at no length of list.
    """
    classes = torch.tensor(labels, device=scores.device)
    right = torch.nn.functional.one_hot(classes, scores.shape[1]).bool()
    ranks = ranks_of(scores, right).tolist()
    return [rank if ok else scores.shape[1] for rank, ok in zip(ranks, decoded, strict=True)]


def top_k(ranks: list[int], classes: int, failed: list[str]) -> Evaluation:
    """Return top 1, and top 5 among more than five classes, of the ranks of the right ones."""
    metrics = {"top1": proportion(ranks, 1)}
    if classes > 5:
        metrics["top5"] = proportion(ranks, 5)
    outcomes = {"correct": [int(rank == 0) for rank in ranks], "rank": ranks}
    return Evaluation(metrics, "top1", outcomes, failed)


def share(scores: Sequence[float]) -> Metric:
    """Return the mean of scores from 0 to 1 in percent; Wilson's interval where all are 0 or 1."""
    if all(score in (0, 1) for score in scores):
        return proportion([0 if score else 1 for score in scores], 1)
    return average(scores, "%", 100)
