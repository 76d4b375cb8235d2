"""Every timing of one model on one task: percentiles and where the time went."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.data.differences import LEGEND, OVER_RANDOM, flags
from bench.report.data.frame import Frames
from bench.report.data.makers import makes
from bench.report.data.rows import Row, known
from bench.report.data.timings import batches, conditions, under
from bench.report.tables.comparison import disturbed_legend, speedup_column
from bench.report.tables.table import Column, Table, escape, name_columns, words

KEEP = (
    *("group", "key", "method", "setting", "band", "is_baseline", "seed"),
    *(flag.field for flag in flags(OVER_RANDOM)),
    "older",
)


@makes("table", 80, fold="Every timing", paper=False)
def timing_tables(frames: Frames, group: str) -> list[Table]:
    """Return one table for each condition and batch size."""
    rows = frames.by_group[group]
    latency = frames.timed(rows)
    tables = []
    for index, condition in enumerate(conditions(latency), 1):
        timed = under(condition, latency)
        for size in batches(timed):
            entries = [entry for entry in timed if entry["batch"] == size]
            tables.append(_timing(rows, entries, group, condition, index))
    return tables


def _timing(
    rows: Sequence[Row], latency: Sequence[Row], group: str, condition: str, index: int
) -> Table:
    entries = {row["key"]: row for row in latency}
    shown = [
        {k: row[k] for k in KEEP} | entries[row["key"]] for row in rows if row["key"] in entries
    ]
    digits = Column("", "p50_ms").decimals(row["p50_ms"] for row in shown)
    times = [
        Column(f"{name[:3]} ms", name, digits=digits, better=-1)
        for name in ("p50_ms", "p95_ms", "p99_ms")
    ]
    per_s = Column("per s", "throughput_per_s", digits=1, better=1)
    bound = Column("of MAC bound %", "bound_share_pct", digits=0, better=1)
    columns = [*name_columns(shown, flag=True), *(column.timing() for column in (*times, per_s))]
    columns += [speedup_column("speed-up", "speedup"), bound.timing()]
    if any(known(row["fastest_x"]) for row in shown):
        backends = dict.fromkeys(row["fastest_backend"] for row in shown if row["fastest_backend"])
        head = f"vs fastest ({' or '.join(map(escape, backends))})" if backends else "vs fastest"
        columns.append(speedup_column(head, "fastest"))
    for key, header in (("reduction_share_pct", "reducing %"), ("utilisation_pct", "of peak %")):
        if any(known(row[key]) for row in shown):
            columns.append(Column(header, key, digits=1))
    if any(row["attention_path"] for row in shown):
        columns.append(words("attention", "attention_path"))
    batch = shown[0]["batch"]
    name = f"{group}--timing-b{batch}" + (f"-{index}" if index > 1 else "")
    legend = "; ".join(filter(None, (LEGEND, disturbed_legend(shown))))
    return Table(name, escape(f"Batch {batch} · {condition}. {legend}."), columns, shown)
