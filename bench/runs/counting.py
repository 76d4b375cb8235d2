"""MACs and tokens of a model as it is now: of one example, and the means over several."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import bench
from bench.measure.closed_form import check_counters
from bench.models.loaded import Loaded
from bench.records.record import Macs, Tokens


def counted(loaded: Loaded, inputs: Mapping[str, Any], baseline: int) -> tuple[Macs, Tokens]:
    """Return MACs and tokens of a model as it is now; `baseline` are its MACs unreduced."""
    operators = bench.count_macs(loaded.model, **inputs)
    trace = bench.trace(loaded.model, **inputs)
    macs = Macs(
        total=operators.total,
        reduction=operators.reduction,
        closed_form=check_counters(loaded.model, trace, operators),
        baseline_total=baseline,
        scope=loaded.scope,
        by_op=dict(operators.by_op),
    )
    return macs, {tower: list(tokens) for tower, tokens in trace.tokens.items()}


def mean_count(counts: Sequence[tuple[Macs, Tokens]]) -> tuple[Macs, Tokens]:
    """Return the mean MACs of several examples, rounded, and the mean tokens of each block."""

    def mean(values: Iterable[int]) -> int:
        return round(statistics.fmean(values))

    macs = [one for one, _ in counts]
    operators = dict.fromkeys(op for one in macs for op in one.by_op)
    tokens: Tokens = {}
    for tower in counts[0][1]:
        for examples in zip(*(blocks[tower] for _, blocks in counts), strict=True):
            ways = (round(statistics.fmean(way), 2) for way in zip(*examples, strict=True))
            tokens.setdefault(tower, []).append((next(ways), next(ways)))
    return (
        replace(
            macs[0],
            total=mean(one.total for one in macs),
            reduction=mean(one.reduction for one in macs),
            closed_form=mean(one.closed_form for one in macs),
            by_op={op: mean(one.by_op.get(op, 0) for one in macs) for op in operators},
        ),
        tokens,
    )
