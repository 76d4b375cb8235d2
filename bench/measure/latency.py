"""Paired timing: the reduced and the unreduced model take turns within one run.

A speed-up of two separately timed runs mostly compares two states of the machine. Here both sides
alternate A B B A, so that drift and order hit them alike, in several blocks; see
`bench.measure.blocks`.

    pair = paired(run_baseline, run_reduced, repeats=30)
    pair.speedup.median, pair.speedup.ci95
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.core import Observer, observing
from bench.measure.blocks import MIN_PAIRS, Blocks, Limits, Sample, no_garbage_collection
from bench.measure.timing import Paired

if TYPE_CHECKING:
    from bench.measure.profiles import Profile

Call = Callable[[], object]
PASS = "pass"  # the one stage of a forward pass


def paired(
    run_a: Call,
    run_b: Call,
    *,
    repeats: int = 32,
    warmup: int = 3,
    device: str | torch.device = "cpu",
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
    min_pairs: int = MIN_PAIRS,
    threads: int | None = None,
) -> Paired:
    """Time `run_a` (the baseline) and `run_b` alternately, under `torch.inference_mode`.

    The blocks follow one another here; the cells of a suite spread theirs over their time.

    Args:
        run_a: baseline, called without arguments.
        run_b: the side to compare.
        repeats: pairs to take, rounded up to whole quadruples in each block.
        warmup: untimed calls of each side first; one is enough where it takes a block's time.
        device: where the work happens; "cuda" is timed with events, after synchronising.
        min_seconds: take more pairs than `repeats` until this much time has passed.
        max_seconds: take fewer once it has, but never fewer than `min_pairs`.
        min_pairs: see `max_seconds`.
        threads: intra-op threads for this run; None leaves PyTorch's setting.

    Raises:
        BenchError: too few pairs for an interval.
    """
    limits = Limits(repeats, min_seconds, max_seconds, min_pairs, warmup=warmup)
    blocks = Blocks(sampler(run_a, device), sampler(run_b, device), limits, PASS, watched=False)
    return blocks.paired(PASS, take_all(blocks, threads), clock_of(device))


def take_all(blocks: Blocks, threads: int | None) -> int:
    """Take all blocks of a timing, one after another; return the intra-op threads they ran on."""
    gc.collect()
    with torch.inference_mode(), using_threads(threads) as used, no_garbage_collection():
        for _ in range(blocks.limits.blocks):
            blocks.add()
    return used


def sampler(run: Call, device: str | torch.device) -> Sample:
    """Return a function that times one call of `run`."""
    where = torch.device(device)
    return lambda: {PASS: _time_ms(run, where)}


def clock_of(device: str | torch.device) -> str:
    """Return the name of the clock that times what runs on a device."""
    return "cuda events" if torch.device(device).type == "cuda" else "perf_counter"


def _time_ms(run: Call, device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = _event(), _event()
        stream = torch.cuda.current_stream(device)
        torch.cuda.synchronize(device)
        begin.record(stream)
        run()
        end.record(stream)
        torch.cuda.synchronize(device)
        return float(begin.elapsed_time(end))
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1e6


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]


@contextmanager
def using_threads(wanted: int | None) -> Iterator[int]:
    """Set PyTorch's intra-op threads for the body; yields how many there are."""
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


class _Stopwatch(Observer):
    """Adds up the time inside one region of a reduced forward pass."""

    def __init__(self, region: str, device: torch.device) -> None:
        self.region, self.device = region, device
        self.depth = 0
        self.marks: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._begin: float | torch.cuda.Event = 0.0

    def enter(self, region: str) -> None:
        if region == self.region:
            if not self.depth:
                self._begin = self._now()
            self.depth += 1

    def exit(self, region: str) -> None:
        if region == self.region:
            self.depth -= 1
            if not self.depth:
                self.marks.append((self._begin, self._now()))

    def total_ms(self) -> float:
        """Sum over all regions; on a GPU only after synchronising."""
        total = 0.0
        for begin, end in self.marks:
            if isinstance(begin, float) and isinstance(end, float):
                total += 1e3 * (end - begin)
            elif isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
                total += begin.elapsed_time(end)
        return total

    def _now(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = _event()
        event.record(torch.cuda.current_stream(self.device))
        return event


def reduction_share(
    run: Call,
    *,
    repeats: int = 5,
    warmup: int = 1,
    device: str | torch.device = "cpu",
    threads: int | None = None,
) -> float:
    """Share (0 to 1) of `run`'s time spent deciding and applying the reduction; the median call's.

    0 where nothing is reduced. A compiled model skips the observers, so time the eager one here.
    """
    device = torch.device(device)
    shares: list[float] = []
    with torch.inference_mode(), using_threads(threads), no_garbage_collection():
        for _ in range(warmup):
            run()
        for _ in range(repeats):
            watch = _Stopwatch("reduction", device)
            with observing(watch):
                total = _time_ms(run, device)
            shares.append(watch.total_ms() / total)
    return float(np.median(shares))


def utilisation(macs: int, ms: float, profile: Profile, dtype: str) -> float | None:
    """Share (0 to 1) of the data-sheet peak that `macs` in `ms` milliseconds amount to.

    Two operations a MAC. None where the profile has no peak for `dtype`.
    """
    peak = (profile.peak_tflops or {}).get(dtype)
    return None if peak is None else 2 * macs / (ms * 1e-3) / (peak * 1e12)
