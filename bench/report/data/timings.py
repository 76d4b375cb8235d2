"""Pick timings by condition and batch size, and judge their speed-ups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from bench.report.data.rows import CONDITION, Row


def conditions(latency: Iterable[Row]) -> list[str]:
    """Return the conditions of some timings, the most frequent first, the earlier among equals."""
    return [name for name, _ in Counter(row["condition"] for row in latency).most_common()]


def under_main(latency: Sequence[Row]) -> tuple[str | None, list[Row]]:
    """Return the condition that most timings were taken under, and those timings."""
    condition = next(iter(conditions(latency)), None)
    return condition, under(condition, latency)


def under(condition: str | None, latency: Sequence[Row]) -> list[Row]:
    """Return the timings that were taken under a condition."""
    return [entry for entry in latency if entry["condition"] == condition]


def batches(latency: Iterable[Row]) -> list[int]:
    """Return the batch sizes of some timings, ascending."""
    return sorted({entry["batch"] for entry in latency})


def ends_of(sizes: Sequence[int]) -> list[int]:
    """Return the smallest and the largest batch size; empty of none."""
    return list(dict.fromkeys([*sizes[:1], *sizes[-1:]]))


def with_timings(rows: Sequence[Row], latency: Sequence[Row]) -> list[Row]:
    """Add the timings to copies of the rows, one field a batch size: ``p50_ms_batch8``."""
    result = [dict(row) for row in rows]
    by_key = {row["key"]: row for row in result}
    for entry in latency:
        for name in (name for name in entry if name not in CONDITION):
            by_key[entry["key"]][f"{name}_batch{entry['batch']}"] = entry[name]
    return result


def is_noise(ends: Sequence[float], within: float | None, null: float) -> bool:
    """Whether a value may be `null`: its interval holds it, or two equal things lie as far away.

    Args:
        ends: The value, the lower and the upper end of its interval.
        within: How far from `null` two equal things lie; None where nothing tells.
        null: The value that means no difference.
    """
    value, low, high = ends
    alike = within is not None and abs(value - null) <= within
    return alike or low <= null <= high
