"""What there is to choose from: where methods meet at a budget, and the fastest of some cells."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.data import disturbed
from bench.report.data.frame import Frames
from bench.report.data.rows import Row, known
from bench.report.data.timings import under_main


def meetings(frames: Frames, group: str) -> dict[str, list[Row]]:
    """Return the scored cells of each band of a table in which two methods or more meet."""
    bands: dict[str, list[Row]] = {}
    for row in frames.by_group[group]:
        if not row["is_baseline"] and known(row["accuracy_value"]):
            bands.setdefault(row["band"], []).append(row)
    return {name: cells for name, cells in bands.items() if len({r["method"] for r in cells}) > 1}


def fastest(frames: Frames, rows: Sequence[Row]) -> tuple[Row, Row] | None:
    """Return the cell with the largest speed-up at the largest batch, and that timing.

    Timings that other load disturbed do not count; None where no others are left.
    """
    timings = at_largest_batch(frames, rows)
    if not timings:
        return None
    timing = max(timings, key=lambda entry: entry["speedup_x"])
    return next(row for row in rows if row["key"] == timing["key"]), timing


def at_largest_batch(frames: Frames, rows: Sequence[Row]) -> list[Row]:
    """Return the cells' timings at the largest batch that other load did not disturb."""
    quiet = disturbed.quiet(under_main(frames.timed(rows))[1])
    largest = max((timing["batch"] for timing in quiet), default=None)
    return [timing for timing in quiet if timing["batch"] == largest]
