"""What other processes use while something is timed, and whether that disturbs it.

A timing is guilty until proven quiet: by the processors that others kept busy before and during it,
by how far the unreduced model's times lie apart, and by how slow they are beside what they usually
are. Of a GPU only the host's side is watched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from bench.measure.timing import Timing

BUSY_SHARE = 0.10  # of the machine's processors that others may keep busy
MOST_DISPERSION = 1.0  # of the unreduced side's samples, see `Timing.dispersion`
MOST_SLOWDOWN = 2.0  # of the unreduced side's median over its usual one
LOOK_SECONDS = 0.1  # the system counts processor time in hundredths of a second

_WORKING = ("user", "nice", "system", "irq", "softirq", "steal", "interrupt", "dpc")


@dataclass(frozen=True)
class Snapshot:
    """Seconds at one moment: by the wall clock, of all processors at work, of this process's."""

    wall: float
    busy: float
    own: float

    @staticmethod
    def take() -> Snapshot:
        """Return the present one."""
        times = psutil.cpu_times()
        busy = sum(getattr(times, name, 0.0) for name in _WORKING)
        return Snapshot(time.perf_counter(), busy, time.process_time())

    def others_since(self, earlier: Snapshot) -> float:
        """Processors that other processes kept busy since `earlier`, on average."""
        others = (self.busy - earlier.busy) - (self.own - earlier.own)
        return max(0.0, others / max(self.wall - earlier.wall, 1e-9))


def look() -> float:
    """Processors that other processes keep busy while this one waits a moment."""
    before = Snapshot.take()
    time.sleep(LOOK_SECONDS)
    return Snapshot.take().others_since(before)


def disturbance(load: float, baseline_ms: Sequence[float], usual_ms: float | None) -> str | None:
    """Return by what one can tell that a timing was disturbed; None where it was quiet.

    Args:
        load: processors that others kept busy, see `Snapshot.others_since`.
        baseline_ms: the unreduced side's samples.
        usual_ms: its median in other timings of the same kind; None where there are none yet.
    """
    cores = os.cpu_count() or 1
    if load > BUSY_SHARE * cores:
        return f"other processes kept {load:.1f} of {cores} processors busy"
    timing = Timing(tuple(baseline_ms))
    if timing.dispersion > MOST_DISPERSION:
        spread = f"{100 * timing.dispersion:.0f} % of their median"
        return f"80 % of the unreduced model's times span {spread}"
    if usual_ms is not None and timing.p50_ms > MOST_SLOWDOWN * usual_ms:
        return f"the unreduced model took {timing.p50_ms:.4g} ms, usually {usual_ms:.4g}"
    return None
