"""Numbers of a record that follow from others of it, worked out again.

Formulas of intervals are written once more here on purpose: a fault of those that measure shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from bench.core.errors import shown
from bench.records.outcomes import Scores, sample_scores, scores_by_seed
from bench.records.record import Accuracy, Generation, Metric, Record, Served, Speedup, Stop

Problem = tuple[str, str]  # the field, and what is wrong with it
Ends = tuple[float, float] | None

COUNTERS_AGREE = 0.005  # share by which the two counts of MACs may differ
HALF_DIGIT_MS = 0.5e-4  # samples are recorded with four digits
EXACT = 1e-6  # share of a number that arithmetic in another order may change
LEVEL = 0.975
ALL_TAKEN = "all samples were taken"  # a reason why a cell with a precision has no stop


# --- accuracy ------------------------------------------------------------------------------------


def accuracy(record: Record) -> Iterator[Problem]:
    """Yield where metrics are not what the outcomes of samples give."""
    scored = record.accuracy
    if scored.primary is None:
        if scored.metrics:
            yield "accuracy.primary", "there are metrics, and none is named"
        return
    if scored.primary not in scored.metrics:
        yield "accuracy.primary", f"there is no metric '{shown(scored.primary)}'"
        return
    for name, metric in scored.metrics.items():
        field = f"accuracy.metrics.{shown(name)}"
        low, high = metric.ci95 or (metric.value, metric.value)
        if not low - EXACT <= metric.value <= high + EXACT:
            yield f"{field}.ci95", "the interval does not hold the value"
        if metric.unit == "%" and not -EXACT <= metric.value <= 100 + EXACT:
            yield f"{field}.value", "a percentage beyond 0 to 100"
        try:
            yield from (
                (f"{field}{end}", problem) for end, problem in _metric(name, metric, scored)
            )
        except (ArithmeticError, TypeError, ValueError):
            yield "accuracy.outcomes", f"those of '{name}' are no numbers, one a sample"


def _metric(name: str, metric: Metric, scored: Accuracy) -> Iterator[Problem]:
    """Yield where a metric is not what its outcomes give."""
    if sample_scores(name, scored.outcomes) is None:
        if name == scored.primary:
            yield "", "no outcomes that it could follow from, or be compared by"
        return
    scores = scores_by_seed(name, scored)
    if scores is None or scores.ndim != 2 or not scores.size:
        yield "", "its seeds do not have the same samples"
        return
    scale = 100.0 if metric.unit == "%" else 1.0
    if scores.min() < 0 or (metric.unit == "%" and scores.max() > 1):
        yield "", "an outcome is beyond 0 to 1"
    values = scale * scores.mean(1)
    if metric.n != scores.shape[1]:
        yield ".n", f"{metric.n}, its outcomes are {scores.shape[1]}"
    if not _near(metric.value, values.mean()):
        yield ".value", f"{metric.value:g}, its outcomes give {values.mean():g}"
    ways = [_over_seeds(scale * scores, values, ends, metric.unit) for ends in (_share, _student)]
    if not any(_same(metric.ci95, ends) for ends in ways):
        yield ".ci95", f"{_written(metric.ci95)}, its outcomes give {_written(ways[0])}"
    seeds = scored.seed_values if name == scored.primary else []
    if seeds and (len(seeds) != len(values) or not _near(seeds, values)):
        yield "", "'seed_values' are not what its outcomes give"


def _share(scores: Scores, scale: float) -> Ends:
    """Return Wilson's interval of hits, Student's of other scores."""
    if scale == 1 or not np.isin(scores, (0, scale)).all():
        return _student(scores, scale)
    n, z = len(scores), float(ndtri(LEVEL))
    p = float(scores.mean()) / scale
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return scale * (centre - reach), scale * (centre + reach)


def _student(scores: Scores, scale: float) -> Ends:
    n = len(scores)
    if n < 2:
        return None
    reach = float(stdtrit(n - 1, LEVEL)) * float(scores.std(ddof=1)) / math.sqrt(n)
    return float(scores.mean()) - reach, float(scores.mean()) + reach


def _over_seeds(
    scores: Scores, values: Scores, ends_of: Callable[[Scores, float], Ends], unit: str
) -> Ends:
    """Return the interval that covers samples and seeds; of a single seed, its own."""
    each = [ends_of(row, 100.0 if unit == "%" else 1.0) for row in scores]
    ends = [one for one in each if one is not None]
    seeds, value = len(values), float(values.mean())
    if len(ends) < seeds or seeds == 1:
        return ends[0] if len(ends) == seeds else None
    drawn = float(stdtrit(seeds - 1, LEVEL)) * float(values.std(ddof=1)) / math.sqrt(seeds)
    below, above = (math.hypot(np.mean([end[i] for end in ends]) - value, drawn) for i in (0, 1))
    low, high = value - below, value + above
    return (max(low, 0.0), min(high, 100.0)) if unit == "%" else (low, high)


def stops(record: Record) -> Iterator[Problem]:
    """Yield where a cell did not stop when its samples say that it had to."""
    cell, scored, stop = record.cell, record.accuracy, record.accuracy.stop
    if stop is None:
        all_taken = (scored.reason or "").startswith(ALL_TAKEN)
        if cell.precision and scored.metrics and not (cell.baseline or all_taken):
            yield "accuracy.stop", "nothing tells after how many samples it stopped"
        return
    ours = sample_scores(scored.primary or "", scored.outcomes)
    sizes = [size for size, _ in stop.looks]
    if stop.precision != cell.precision or cell.baseline:
        yield "accuracy.stop.precision", "not the cell's"
    elif ours is None or not sizes or not len(ours) == len(stop.unreduced) == sizes[-1]:
        yield "accuracy.stop.looks", "the last one is not after as many samples as were scored"
    elif sizes != sorted({*sizes}) or sizes[0] < 1 or sizes[-1] > stop.asked:
        yield "accuracy.stop.looks", "not after more and more samples, up to those asked for"
    elif cell.limit is not None and stop.asked > cell.limit:
        yield "accuracy.stop.asked", f"{stop.asked}, the cell's limit is {cell.limit}"
    else:
        percent = scored.metrics[str(scored.primary)].unit == "%"
        yield from _looks(stop, ours, 100.0 if percent else 1.0)


def _looks(stop: Stop, ours: Scores, scale: float) -> Iterator[Problem]:
    """Yield where a half-width is not that of the samples, or it ended at another look."""
    base = np.asarray(stop.unreduced, dtype=np.float64)
    for size, half in stop.looks:
        gaps, hits = ours[:size] - base[:size], {0.0, 1.0}
        if {*ours[:size], *base[:size]} <= hits:
            gaps = np.concatenate([gaps, [1, -1]])
        low, high = _student(scale * gaps, scale) or (0.0, 0.0)
        if not _near(2 * half, high - low):
            yield "accuracy.stop.looks", f"±{half:g}, its outcomes give ±{(high - low) / 2:g}"
    for size, half in stop.looks[:-1]:
        if half <= stop.precision:
            yield "accuracy.stop.looks", f"after {size} samples it was narrow enough"
    if stop.early and stop.looks[-1][1] > stop.precision:
        yield "accuracy.stop.looks", "it stopped before it was narrow enough"


# --- counts and timings --------------------------------------------------------------------------


def counts(record: Record) -> Iterator[Problem]:
    """Yield where counts do not fit each other."""
    macs, params = record.cost.macs, record.cost.params
    if macs is not None:
        if macs.total <= 0 or macs.baseline_total <= 0 or not 0 <= macs.reduction <= macs.total:
            yield "cost.macs", "a count below 0, or a part beyond the total"
        if abs(macs.total - macs.closed_form) > COUNTERS_AGREE * max(macs.total, macs.closed_form):
            yield "cost.macs.closed_form", f"{macs.closed_form:,}, the operators say {macs.total:,}"
        if macs.by_op and abs(sum(macs.by_op.values()) - macs.total) > len(macs.by_op):
            yield "cost.macs.by_op", f"the parts do not add up to {macs.total:,}"
    if params is not None and not 0 <= params.added <= params.total:
        yield "cost.params", "a count below 0, or a part beyond the total"
    if any(count < 0 for blocks in record.cost.tokens.values() for two in blocks for count in two):
        yield "cost.tokens", "a count below 0"


def timings(record: Record) -> Iterator[Problem]:
    """Yield where times and speed-ups are not what the samples give."""
    for timing in record.cost.latency:
        field = f"cost.latency of batch {timing.batch}"
        if timing.engine != record.cell.engine:
            yield f"{field}.engine", f"'{shown(timing.engine)}' is not the cell's"
        sides = timing.samples_ms, timing.baseline_samples_ms
        problems = list(_paired(*sides, timing.p50_ms, timing.speedup))
        if not problems:
            for name, percent in (("p95_ms", 95), ("p99_ms", 99)):
                problems += _percentile(name, getattr(timing, name), timing.samples_ms, percent)
            if not _near(timing.throughput_per_s, 1e3 * timing.batch / timing.p50_ms):
                problems.append(("throughput_per_s", "not what the median time gives"))
        share = timing.reduction_share
        if share is not None and not 0 <= share <= 1:
            problems.append(("reduction_share", f"{share:g} is no share"))
        yield from ((f"{field}.{name}", problem) for name, problem in problems)
    answer = record.cost.generation
    answers: tuple[Generation | Served, ...] = (answer, *answer.served) if answer else ()
    for timed in answers:
        prompts = f" of {timed.batch} prompts" if isinstance(timed, Served) else ""
        for stage in timed.stages:
            sides = stage.samples_ms, stage.baseline_samples_ms
            for name, problem in _paired(*sides, stage.p50_ms, stage.speedup):
                yield f"cost.generation{prompts}, {shown(stage.name)}.{name}", problem


def _paired(
    ours: Sequence[float], base: Sequence[float], p50: float, speedup: Speedup
) -> Iterator[Problem]:
    """Yield where a median time or a speed-up is not what the samples give."""
    if not ours or len(ours) != len(base) or min(*ours, *base) <= 0:
        yield "samples_ms", "not as many positive times as the unreduced model has"
        return
    yield from _percentile("p50_ms", p50, ours, 50)
    ratios, digits = np.asarray(base) / np.asarray(ours), HALF_DIGIT_MS / min(*ours, *base)
    if speedup.blocks and len(ratios) % 2 == 0:  # quadruples A B B A
        ratios = np.sqrt(ratios[::2] * ratios[1::2])
    median = float(np.median(ratios))
    if not _near(speedup.median, median, 2 * digits + EXACT):
        yield "speedup.median", f"{speedup.median:g}, the samples give {median:g}"
    low, high = speedup.ci95
    if not low <= speedup.median <= high:
        yield "speedup.ci95", "the interval does not hold the median"
    if min(speedup.blocks, default=1) <= 0:
        yield "speedup.blocks", "a ratio below 0"
    elif len(speedup.blocks) > 1:
        logs = np.log(speedup.blocks)
        reach = float(stdtrit(len(logs) - 1, LEVEL)) * float(logs.std(ddof=1)) / len(logs) ** 0.5
        ends = [speedup.median * math.exp(sign * reach) for sign in (-1, 1)]
        if not _near(speedup.ci95, ends):
            yield "speedup.ci95", f"{_written(speedup.ci95)}, the blocks give {_written(ends)}"
        slack = 1 + 2 * digits + EXACT
        if not min(speedup.blocks) / slack <= speedup.median <= max(speedup.blocks) * slack:
            yield "speedup.blocks", "the median of all is beyond those of the blocks"


def _percentile(
    name: str, value: float, samples: Sequence[float], percent: float
) -> Iterator[Problem]:
    expected = float(np.percentile(samples, percent))
    if abs(value - expected) > HALF_DIGIT_MS + EXACT * expected:
        yield name, f"{value:g}, the samples give {expected:g}"


def _near(value: Any, expected: Any, share: float = EXACT) -> bool:
    return bool(np.allclose(value, expected, rtol=share, atol=EXACT))


def _same(ends: Ends, expected: Ends) -> bool:
    if ends is None or expected is None:
        return ends is expected
    return _near(ends, expected)


def _written(ends: Iterable[float] | None) -> str:
    return "none" if ends is None else "[" + ", ".join(f"{end:g}" for end in ends) + "]"
