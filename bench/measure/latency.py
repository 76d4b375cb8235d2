"""Paired timing: the reduced and the unreduced model take turns within one run.

A speed-up of two separately timed runs mostly compares two states of the machine. Here both sides
alternate A B B A, so that drift hits them alike, and the ratio is taken pair by pair.

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
from bench.errors import BenchError
from bench.measure.timing import Paired, Speedup, Timing, bootstrap_median, in_pairs

if TYPE_CHECKING:
    from bench.profiles import Profile

__all__ = [
    "Paired",
    "Speedup",
    "Timing",
    "bootstrap_median",
    "paired",
    "reduction_share",
    "utilisation",
]

Run = Callable[[], object]
MIN_PAIRS = 5  # below this the interval of a median says nothing


def paired(
    run_a: Run,
    run_b: Run,
    *,
    repeats: int = 30,
    warmup: int = 3,
    device: str | torch.device = "cpu",
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
    min_pairs: int = MIN_PAIRS,
    threads: int | None = None,
) -> Paired:
    """Time `run_a` (the baseline) and `run_b` alternately, under `torch.inference_mode`.

    Args:
        run_a: baseline, called without arguments.
        run_b: the side to compare.
        repeats: pairs to take.
        warmup: untimed calls of each side first; one is enough where it takes `max_seconds`.
        device: where the work happens; "cuda" is timed with events, after synchronising.
        min_seconds: take more pairs than `repeats` until this much time has passed.
        max_seconds: take fewer once it has, but never fewer than `min_pairs`.
        min_pairs: see `max_seconds`.
        threads: intra-op threads for this run; None leaves PyTorch's setting.

    Raises:
        BenchError: no pair was asked for.
    """
    if repeats < 1 or min_pairs < 1:
        raise BenchError(f"repeats={repeats}, min_pairs={min_pairs}: both must be at least 1")
    device = torch.device(device)
    samples_a: list[float] = []
    samples_b: list[float] = []
    with torch.inference_mode(), using_threads(threads) as used, _no_gc():
        start = time.perf_counter()
        for _ in range(warmup):
            run_a(), run_b()
            if max_seconds is not None and time.perf_counter() - start >= max_seconds:
                break
        start = time.perf_counter()
        while goes_on(
            len(samples_a),
            time.perf_counter() - start,
            repeats,
            min_seconds,
            max_seconds,
            min_pairs,
        ):
            sides = [(run_a, samples_a), (run_b, samples_b)]
            for run, samples in sides if len(samples_a) % 2 == 0 else reversed(sides):
                samples.append(_time_ms(run, device))
    clock = "cuda events" if device.type == "cuda" else "perf_counter"
    return in_pairs(samples_a, samples_b, used, clock)


def goes_on(
    pairs: int,
    seconds: float,
    repeats: int,
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
    min_pairs: int = MIN_PAIRS,
) -> bool:
    """Whether another pair is to be taken; arguments as for `paired`."""
    if pairs < min(min_pairs, repeats):
        return True
    if max_seconds is not None and seconds >= max_seconds:
        return False
    return pairs < repeats or seconds < min_seconds


def _time_ms(run: Run, device: torch.device) -> float:
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


@contextmanager
def _no_gc() -> Iterator[None]:
    """A collection in mid-sample is not the model's time."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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
    run: Run,
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
    with torch.inference_mode(), using_threads(threads), _no_gc():
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
