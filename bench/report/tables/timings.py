"""Timings: picking them from the frames, and their tables by condition and batch size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bench.report.data import disturbed
from bench.report.data.differences import LEGEND, OVER_RANDOM, flags
from bench.report.data.frame import Frames
from bench.report.data.rows import TIMING_COLUMNS, Row, known
from bench.report.tables.table import (
    MISSING,
    Column,
    Table,
    digits_for,
    escape,
    flagged,
    group_rows,
    name_columns,
    number,
    with_interval,
)


def latency_of(frames: Frames, rows: Sequence[Row]) -> list[Row]:
    """Return the timings of some rows."""
    return [entry for row in rows for entry in frames.timings.get(row["key"], ())]


def conditions(latency: Sequence[Row]) -> list[str]:
    """Return the conditions of some timings, the one with most of them first."""
    return most_common(entry["condition"] for entry in latency)


def under(condition: str | None, latency: Sequence[Row]) -> list[Row]:
    """Return the timings that were taken under a condition."""
    return [entry for entry in latency if entry["condition"] == condition]


def most_common(conditions: Iterable[str]) -> list[str]:
    """Return distinct conditions, the most frequent first, the earlier first among equals."""
    counts: dict[str, int] = {}
    for condition in conditions:
        counts[condition] = counts.get(condition, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], list(counts).index(name)))


def batches(latency: Sequence[Row]) -> list[int]:
    """Return the batch sizes of some timings, ascending."""
    return sorted({int(entry["batch"]) for entry in latency})


def with_timings(rows: Sequence[Row], latency: Sequence[Row]) -> list[Row]:
    """Add the timings to the rows, one field a batch size: ``p50_ms_batch8``."""
    result = [dict(row) for row in rows]
    by_key = {row["key"]: row for row in result}
    for entry in latency:
        for name in TIMING_COLUMNS:
            by_key[entry["key"]][f"{name}_batch{int(entry['batch'])}"] = entry[name]
    return result


def timing_column(column: Column, batch: int | None = None) -> Column:
    """Return a column of timings in which disturbed ones are marked and cannot win.

    Args:
        column: The column.
        batch: The batch size in whose fields `with_timings` put them; None: rows are timings.
    """
    field = "disturbed" if batch is None else f"disturbed_batch{batch}"
    return replace(column, write=flagged(column.write, field, disturbed.MARK), unless=field)


def speedup_column(header: str, name: str, batch: int | None = None) -> Column:
    """Return a column of speed-ups with their intervals: `name` is "speedup" or "fastest"."""
    end = "" if batch is None else f"_batch{batch}"
    keys = [f"{name}{part}_x{end}" for part in ("", "_low", "_high")]
    write = with_interval(keys, 2, suffix="×", null=1, within=f"aa_half_x{end}")
    return timing_column(Column(header, keys[0], write, better=1), batch)


def disturbed_legend(rows: Sequence[Row], batches: Sequence[int] = ()) -> str:
    """Return what a caption says of the mark of disturbed timings; empty where none stands."""
    fields = [f"disturbed_batch{batch}" for batch in batches] or ["disturbed"]
    return disturbed.LEGEND if any(row.get(field) for row in rows for field in fields) else ""


def timing_tables(frames: Frames, group: str) -> list[Table]:
    """Return one table for each condition and batch size: every percentile and where time went."""
    rows = group_rows(frames, group)
    latency = latency_of(frames, rows)
    tables = []
    for index, condition in enumerate(conditions(latency), 1):
        timed = under(condition, latency)
        for size in batches(timed):
            own = [entry for entry in timed if entry["batch"] == size]
            tables.append(_timing(rows, own, group, condition, index))
    return tables


def _timing(
    rows: Sequence[Row], latency: Sequence[Row], group: str, condition: str, index: int
) -> Table:
    entries = {row["key"]: row for row in latency}
    names = ("group", "key", "method", "setting", "band", "is_baseline", "seed")
    keep = (*names, *(flag.field for flag in flags(OVER_RANDOM)), "older")
    own = [{k: row[k] for k in keep} | entries[row["key"]] for row in rows if row["key"] in entries]
    digits = digits_for([row["p50_ms"] for row in own])
    columns = [
        Column(f"{name[:3]} ms", name, number(name, digits), better=-1)
        for name in ("p50_ms", "p95_ms", "p99_ms")
    ]
    columns += [
        Column("per s", "throughput_per_s", number("throughput_per_s", 1), better=1),
        Column("of MAC bound %", "bound_share_pct", number("bound_share_pct", 0), better=1),
    ]
    columns = name_columns(own, flag=True) + [timing_column(column) for column in columns]
    columns.insert(-1, speedup_column("speed-up", "speedup"))
    backends = dict.fromkeys(row["fastest_backend"] for row in own if row["fastest_backend"])
    if any(known(row["fastest_x"]) for row in own):
        head = f"vs fastest ({' or '.join(map(escape, backends))})" if backends else "vs fastest"
        columns.append(speedup_column(head, "fastest"))
    for key, header in (("reduction_share_pct", "reducing %"), ("utilisation_pct", "of peak %")):
        if any(known(row[key]) for row in own):
            columns.append(Column(header, key, number(key, 1)))
    if any(row["attention_path"] for row in own):
        path = Column(
            "attention",
            "attention_path",
            lambda row: escape(row["attention_path"] or MISSING),
            text=True,
        )
        columns.append(path)
    batch = int(own[0]["batch"])
    name = f"{group}--timing-b{batch}" + (f"-{index}" if index > 1 else "")
    legend = "; ".join(filter(None, (LEGEND, disturbed_legend(own))))
    return Table(name, escape(f"Batch {batch} · {condition}. {legend}."), columns, own)
