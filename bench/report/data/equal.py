"""What the measurement says of two equal things: the unreduced model timed against its twin (A/A).

A speed-up means something where it is beyond what two equal things show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.records.record import Record, Speedup
from bench.report.data import load

SHARE_PCT = 95  # of the A/A timings lie within the spread
Key = tuple[str, str, str]  # machine, suite, what was timed


@dataclass(frozen=True)
class Spread:
    """The undisturbed A/A timings of one suite on one machine, at one batch size or stage."""

    machine: str
    suite: str
    timing: str
    ratios: tuple[Speedup, ...]

    @property
    def median(self) -> float:
        """The median ratio; 1 is right."""
        return median(ratio.median for ratio in self.ratios)

    @property
    def half(self) -> float:
        """How far from 1 the ratios lie: 95 % of them, all of them where fewer than 20 are known.

        A single one tells no spread; the far end of its interval stands for it.
        """
        if len(self.ratios) == 1:
            return max(abs(end - 1) for end in self.ratios[0].ci95)
        far = sorted(abs(ratio.median - 1) for ratio in self.ratios)
        return far[-(-SHARE_PCT * len(far) // 100) - 1]

    @property
    def holding(self) -> int:
        """How many of the 95 % intervals hold 1."""
        return sum(low <= 1 <= high for low, high in (ratio.ci95 for ratio in self.ratios))


Spreads = Mapping[Key, Spread]


def at_batch(batch: int) -> str:
    """Name the timing of a forward pass."""
    return f"batch {batch}"


def at_stage(stage: str, batch: int = 1) -> str:
    """Name the timing of a stage of an answer, or of answers to a batch of prompts."""
    return f"answer, {stage}" if batch == 1 else f"{batch} answers, {stage}"


def spreads(records: Sequence[Record]) -> Spreads:
    """Return the spread of each machine, suite and timing.

    A timing that carries the ratio of its own A/A (`Latency.equal`) adds it where no record of the
    unreduced model has it.

    Args:
        records: Records from old to new. Of one cell in several suites each suite has its own.
    """
    suites = dict.fromkeys(record.cell.suite for record in records)
    kept = [
        record
        for suite in suites
        for record in load.newest([r for r in records if r.cell.suite == suite])[0]
        if record.status == "ok"
    ]
    measured: dict[Key, list[tuple[Speedup, bool]]] = {}
    carried: dict[Key, dict[object, Speedup]] = {}
    for record in kept:
        for timing, ratio, disturbed, equal in _timings(record):
            key = load.machine(record), record.cell.suite, timing
            if record.cell.baseline:
                measured.setdefault(key, []).append((ratio, disturbed))
            elif equal:
                carried.setdefault(key, {})[_value(equal)] = equal
    found = {}
    for key in sorted(measured.keys() | carried.keys(), key=_order):
        taken = {_value(ratio) for ratio, _ in measured.get(key, ())}
        ratios = [ratio for ratio, disturbed in measured.get(key, ()) if not disturbed]
        ratios += [ratio for value, ratio in carried.get(key, {}).items() if value not in taken]
        if ratios:
            found[key] = Spread(*key, tuple(sorted(ratios, key=_value)))
    return found


def half(spreads: Spreads, record: Record, timing: str) -> float | None:
    """Return how far from 1 two equal things lie in a record's suite; None where nothing tells."""
    spread = spreads.get((load.machine(record), record.cell.suite, timing))
    return spread.half if spread else None


def _timings(record: Record) -> Iterator[tuple[str, Speedup, bool, Speedup | None]]:
    for entry in record.cost.latency:
        yield at_batch(entry.batch), entry.speedup, entry.disturbed, entry.equal
    answer = record.cost.generation
    for stage in answer.stages if answer else ():
        yield at_stage(stage.name), stage.speedup, answer is not None and answer.disturbed, None
    for served in answer.served if answer else ():
        for stage in served.stages:
            yield at_stage(stage.name, served.batch), stage.speedup, served.disturbed, None


def _value(ratio: Speedup) -> tuple[float, ...]:
    return (ratio.median, *ratio.ci95)


def _order(key: Key) -> tuple[object, ...]:
    machine, suite, timing = key
    return machine, suite, not timing.startswith("batch"), len(timing), timing
