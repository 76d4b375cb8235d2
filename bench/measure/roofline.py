"""Estimate how long a forward pass takes on hardware that is not here: by a roofline, in a range.

An operator takes max(2·MACs / (η·peak), bytes / (η'·bandwidth)) + launch, a view nothing, and a
pass takes the sum over its operators. Peak and bandwidth are the data sheet's
(bench/assets/data/profiles.yaml). What share of them is reached is known in a range alone, and so
is the time. An estimate is no measurement: no record and no report has one.

    seconds(operators(model, **inputs), on_sheet("h100"), "eager")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from bench.core.errors import BenchError, check_known
from bench.measure import profiles
from bench.measure.operators import Operator
from bench.records.record import EAGER, ENGINES, GRAPHS

Span = tuple[float, float, float]  # what is likely, and the limits below and above

# Shares of peak and bandwidth that operators reach, and the seconds until one has begun.
COMPUTE: Span = (0.70, 0.55, 0.85)
MEMORY: Span = (0.80, 0.65, 0.95)
LAUNCH_S: Span = (4e-6, 2e-6, 8e-6)

REPLAYED = 0.125  # share of a launch that an operator of a CUDA graph takes


@dataclass(frozen=True)
class Rates:
    """What operators reach: operations a second (two a MAC), bytes a second, seconds a launch."""

    flops: float
    bandwidth: float
    launch_s: float

    def seconds(self, operator: Operator) -> float:
        """Return how long one operator takes by the roofline, its launch included."""
        if not operator.moves:  # the host is ahead of the device
            return 0.0
        work = max(2 * operator.macs / self.flops, operator.bytes / self.bandwidth)
        return work + self.launch_s


@dataclass(frozen=True)
class Device:
    """Hardware in one dtype; of `rates` the first is likely, the others are at the limits."""

    name: str
    dtype: str
    rates: tuple[Rates, ...]
    source: str


@dataclass(frozen=True)
class Range:
    """low ≤ point ≤ high; the point is for who checks the estimates, and no table shows it."""

    low: float
    point: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Range:
        """Return the range of values, one for each of a device's rates."""
        return Range(min(values), values[0], max(values))


def spread(kind: type[Rates], *spans: Span) -> tuple[Rates, ...]:
    """Return the likely rates of a kind, then every combination of the limits."""
    limits = product(*(span[1:] for span in spans))
    return (kind(*(span[0] for span in spans)), *(kind(*corner) for corner in limits))


def sheets() -> list[str]:
    """Return the names of the devices that have a data sheet."""
    return [name for name in profiles.names() if profiles.get(name).sheet]


def on_sheet(name: str, dtype: str | None = None) -> Device:
    """Return a device by its data sheet, in `dtype` or else in the first of its profile.

    Raises:
        BenchError: no such device, or no peak for that dtype.
    """
    check_known("unknown device", name, sheets())
    profile = profiles.get(name)
    dtype = dtype or profile.dtypes[0]
    peaks = profile.peak_tflops or {}
    if dtype not in peaks or profile.bandwidth_gbs is None:
        raise BenchError(f"the data sheet of {name} has no peak for {dtype}: {', '.join(peaks)}")
    return of_peaks(name, dtype, peaks[dtype], profile.bandwidth_gbs, profile.source)


def of_peaks(name: str, dtype: str, tflops: float, gbs: float, source: str) -> Device:
    """Return a device by its dense peak in 10^12 operations a second and its 10^9 bytes a second.

    Raises:
        BenchError: one of the two is not above 0.
    """
    if min(tflops, gbs) <= 0:
        raise BenchError(f"{name}: peak {tflops:g} and bandwidth {gbs:g} must be above 0")
    return Device(
        name,
        dtype,
        spread(Rates, _scaled(COMPUTE, tflops * 1e12), _scaled(MEMORY, gbs * 1e9), LAUNCH_S),
        source,
    )


def _scaled(span: Span, unit: float) -> Span:
    return span[0] * unit, span[1] * unit, span[2] * unit


def seconds(ran: Sequence[Operator], device: Device, engine: str = EAGER) -> tuple[float, ...]:
    """Return the seconds of a pass under each of the device's rates, the likely ones first.

    "eager" launches each operator. With "compile" pointwise operators are written into their
    neighbours, as if nothing were left of their bytes and launches. "graphs" is that with an
    eighth of each launch.

    Raises:
        BenchError: no such engine.
    """
    check_known("unknown engine", engine, ENGINES)
    left = [operator for operator in ran if engine == EAGER or not operator.pointwise]
    share = REPLAYED if engine == GRAPHS else 1.0
    engaged = [replace(r, launch_s=r.launch_s * share) for r in device.rates]
    return tuple(sum(r.seconds(operator) for operator in left) for r in engaged)


def speedup(plain: Sequence[float], reduced: Sequence[float]) -> Range:
    """Return plain over reduced; both sides are timed by `seconds` on one device.

    Each ratio is taken under the same rates: a device that reaches less does so on both sides.
    """
    return Range.of([a / b for a, b in zip(plain, reduced, strict=True)])
