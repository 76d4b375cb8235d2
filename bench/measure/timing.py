"""What a paired timing says: samples, percentiles, and the speed-up with its interval.

Samples come in quadruples A B B A, and quadruples in blocks that are spread in time. Within a
quadruple drift and the order of the sides cancel; from block to block the machine changes as it
does from one measurement to the next, so the blocks' spread gives the interval. No torch in here:
whoever reads recorded samples can use it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from bench.records.record import Speedup

CONFIDENCE = 0.95


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

    @property
    def dispersion(self) -> float:
        """(90th - 10th percentile) / median of the samples."""
        return (self.percentile_ms(90) - self.percentile_ms(10)) / self.p50_ms

    def throughput_per_s(self, batch: int) -> float:
        """Samples a second at `batch` samples a call, from the median time."""
        return 1e3 * batch / self.p50_ms


@dataclass(frozen=True)
class Block:
    """Quadruples A B B A taken in a row: sample i of `a` was taken next to sample i of `b`.

    Samples 2k and 2k + 1 of both sides are quadruple k. Times are in milliseconds.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Time of A over time of B in each quadruple: the geometric mean of its two pairs'."""
        pairs = np.asarray(self.a) / np.asarray(self.b)
        return [float(ratio) for ratio in np.sqrt(pairs[::2] * pairs[1::2])]


@dataclass(frozen=True)
class Paired:
    """What a paired timing saw.

    Attributes:
        a: the baseline's times.
        b: the other side's times; sample i was taken next to sample i of `a`.
        speedup: time of a over time of b: above 1 means that b is faster.
        threads: intra-op threads of PyTorch during the run.
        clock: "cuda events" or "perf_counter".
    """

    a: Timing
    b: Timing
    speedup: Speedup
    threads: int
    clock: str


def paired_of(blocks: Sequence[Block], threads: int, clock: str) -> Paired:
    """Return what all blocks say together."""
    a, b = (tuple(ms for block in blocks for ms in getattr(block, side)) for side in "ab")
    return Paired(Timing(a), Timing(b), speedup_of(blocks), threads, clock)


def speedup_of(blocks: Sequence[Block]) -> Speedup:
    """Return the median ratio of all quadruples, and an interval by the spread of the blocks.

    Student's interval of the blocks' median log ratios: one block more or less is what a repeat
    has in common with the measurement, however many samples a block has.

    Raises:
        ValueError: fewer than two blocks, which have no spread.
    """
    if len(blocks) < 2:
        raise ValueError("an interval of a speed-up needs two blocks of pairs or more")

    median = float(np.median([ratio for block in blocks for ratio in block.ratios]))
    medians = [float(np.median(block.ratios)) for block in blocks]
    error = np.std(np.log(medians), ddof=1) / len(blocks) ** 0.5
    reach = float(stdtrit(len(blocks) - 1, (1 + CONFIDENCE) / 2) * error)
    return Speedup(
        median,
        (float(median * np.exp(-reach)), float(median * np.exp(reach))),
        blocks=tuple(medians),
    )
