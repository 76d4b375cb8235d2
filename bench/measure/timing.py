"""What a paired timing says: samples, percentiles, and the speed-up with its interval.

No torch in here: whoever reads recorded samples can use it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Speedup:
    """Time of A over time of B, pair by pair: above 1 means that B is faster."""

    median: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Timing:
    """The samples of one side, in milliseconds, in the order taken."""

    samples_ms: tuple[float, ...]

    def percentile_ms(self, percent: float) -> float:
        """Linearly interpolated percentile of the samples, in milliseconds."""
        return float(np.percentile(self.samples_ms, percent))

    @property
    def p50_ms(self) -> float:
        """Median, in milliseconds."""
        return self.percentile_ms(50)

    @property
    def p95_ms(self) -> float:
        """95th percentile, in milliseconds."""
        return self.percentile_ms(95)

    @property
    def p99_ms(self) -> float:
        """99th percentile, in milliseconds; from few samples little more than the slowest one."""
        return self.percentile_ms(99)

    def throughput_per_s(self, batch: int) -> float:
        """Samples a second at `batch` samples a call, from the median time."""
        return 1e3 * batch / self.p50_ms


@dataclass(frozen=True)
class Paired:
    """What `paired` saw.

    Attributes:
        a: the baseline's times.
        b: the other side's times; sample i was taken next to sample i of `a`.
        speedup: time of a over time of b.
        threads: intra-op threads of PyTorch during the run.
        clock: "cuda events" or "perf_counter".
    """

    a: Timing
    b: Timing
    speedup: Speedup
    threads: int
    clock: str


def bootstrap_median(
    ratios: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of the median of `ratios`."""
    values = np.asarray(ratios, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def in_pairs(
    samples_a: Sequence[float], samples_b: Sequence[float], threads: int, clock: str
) -> Paired:
    """What samples say of which number i of one was taken next to number i of the other."""
    ratios = [a / b for a, b in zip(samples_a, samples_b, strict=True)]
    speedup = Speedup(float(np.median(ratios)), bootstrap_median(ratios))
    return Paired(Timing(tuple(samples_a)), Timing(tuple(samples_b)), speedup, threads, clock)
